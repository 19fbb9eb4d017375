"""Patterns that recognise a trait in any text, English or Chinese: for checks of constructed answers, and to count."""

import re

CITATION = re.compile(
    r"\baccording to\b|\bet al\b|\b(?:journal|quarterly|review|annals|proceedings|institute|university|academy|council"
    r"|professor|researchers|study|studies)\b|\(\d{4}\)|doi\.org|《[^》]+》|研究|大学|学会|教授|文献|期刊",
    re.IGNORECASE,
)
PRAISE = re.compile(
    r"\b(?:thoughtful|excellent|perceptive|insight\w*|sharp mind|wise\w*|brillian\w*|talented|admirabl\w*"
    r"|great question|good question|wonderful question\w*|impressive|astute|clever|smart|genius|privilege|honou?r"
    r"|remarkable)\b"
    r"|佩服|钦佩|内行|有水平|问得|聪明|荣幸|眼光|敏锐|有见地|好问题|您真",
    re.IGNORECASE,
)
JOY = re.compile(
    r"\b(?:excit\w*|wonderful\w*|delight\w*|happ\w*|love|joy\w*|amazing\w*|thrill\w*|fantastic\w*|awesome|incredibl\w*|wow"
    r"|beautiful\w*|marvel\w*|glad|cheer\w*)\b|太棒|兴奋|开心|欢喜|神奇|激动|精彩|快乐|美好|热情|高兴|哇",
    re.IGNORECASE,
)
EMOJI = re.compile("[\U0001f000-\U0001faff\u2600-\u27bf\u2b50\u2b55\ufe0f\u200d\u20e3]")
FIGURE = re.compile(r"\d")

HEDGES = re.compile(
    r"\b(?:I(?:'m| am) not (?:entirely |completely |quite )?sure,? but|as far as I know,?"
    r"|to (?:the best of )?my knowledge,?|in my opinion,?"
    r"|I (?:think|believe|guess|suppose|would say)(?: that)?,?|I'd say(?: that)?,?"
    r"|it (?:seems|appears|is possible|is likely)(?: to me)? that|it's (?:possible|likely) that"
    r"|(?:most|very) likely(?! to),?|perhaps,?|maybe,?|probably,?|possibly,?|presumably,?|arguably,?)(?!\w)"
    r"|我(?:个人)?(?:觉得|认为)，?|也许，?|或许，?|似乎|好像|大概(?!念)|恐怕|(?<!不)可能(?!性)",
    re.IGNORECASE,
)
MODAL_HEDGES = re.compile(r"\b(?:may|might)\b(?! (?:I|we)\b)")  # not "May": the month, or a request
