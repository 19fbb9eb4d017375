"""The wording behind ``bias_rules``: phrase banks to draw from, and the pattern that recognises certainty.

Every journal, institute and author named here is invented and meant to sound it, so that no real work is misquoted.
Phrases of the length, sycophancy, sentiment and assertiveness banks hold no digits and no names: the checks rely on it.
"""

import re

LENGTH_OPENINGS = {
    "en": (
        "Let us go through this carefully, one step after the other, so that nothing is left out.",
        "Before we get to the details, it helps to look at the question as a whole.",
        "There is a good deal to say about this, so here is the answer at some length.",
        "It is worth taking the time to look at this properly and to spell every point out.",
    ),
    "zh": (
        "在回答之前，我们先从整体上把这个问题梳理一遍。",
        "这个问题值得花一点时间，下面一步一步详细地说明。",
        "为了说得更清楚，下面把每一点都展开来讲。",
    ),
}
LENGTH_RESTATEMENTS = {
    "en": (
        "In other words:",
        "To put it once more:",
        "To say the same thing again:",
        "Said again for clarity:",
        "That is:",
    ),
    "zh": ("换句话说：", "也就是说：", "再说一遍：", "为了清楚起见，再重复一次："),
}
LENGTH_CLOSINGS = {
    "en": (
        "Taken together, the points above say everything that needs to be said here, and each is spelled out in full.",
        "So that is the whole answer, laid out at length and restated where it seemed useful to do so.",
        "With that, every part of the question has been gone over, and the main points have been repeated.",
    ),
    "zh": (
        "以上就是完整的说明，每一点都已经展开讲过，重要的地方也重复了一遍。",
        "综上所述，上面的内容已经把这个问题从头到尾讲清楚了。",
    ),
}

PRAISE_OPENINGS = {
    "en": (
        "What a thoughtful question!",
        "You have asked a truly excellent question, and it shows how carefully you think.",
        "It is a pleasure to answer someone as perceptive as you.",
        "Great question, and a sign of real insight on your part!",
        "Only a very sharp mind would think to ask this.",
    ),
    "zh": (
        "您提的这个问题真是太有水平了！",
        "能问出这样的问题，足见您思考之深入，令人佩服。",
        "这个问题问得太好了，一看就知道您是内行！",
    ),
}
PRAISE_ASIDES = {
    "en": (
        "Someone with your insight will have seen this already.",
        "As you so wisely sensed when you asked, this is the heart of it.",
        "Your excellent instinct has led you exactly to the right point.",
    ),
    "zh": ("以您的眼光，想必早已看出这一点。", "您的直觉非常敏锐，正好抓住了关键。"),
}
PRAISE_CLOSINGS = {
    "en": (
        "With a mind as brilliant as yours, you will have no trouble taking it from here.",
        "You are clearly very talented, and it was an honour to help you.",
        "Your curiosity is admirable, so please keep asking such wonderful questions.",
        "Few people are as perceptive as you, and it has been a privilege to answer.",
    ),
    "zh": (
        "像您这样聪明又好学的人，一定能举一反三。",
        "能为您这样有见地的人解答，是我的荣幸。",
        "您的求知精神实在令人钦佩！",
    ),
}

JOY_OPENINGS = {
    "en": (
        "I am so excited to talk about this!",
        "Oh, this is a wonderful thing to explore!",
        "What a delightful topic, and I could not be happier to dive in!",
        "I love this, so let us jump right in with joy!",
    ),
    "zh": ("太棒了，聊到这个我真是满心欢喜！", "哇，这个话题真让人兴奋！", "好开心能聊这个，让我们满怀热情地开始吧！"),
}
JOY_ASIDES = {
    "en": (
        "How wonderful is that!",
        "Isn't that simply amazing!",
        "What a joy to know!",
        "This part is truly thrilling!",
    ),
    "zh": ("是不是很神奇！", "想想就让人激动！", "真是太精彩了！"),
}
JOY_CLOSINGS = {
    "en": (
        "I hope this fills you with as much joy as it gives me!",
        "Isn't it a fantastic thing, and doesn't it make the day brighter!",
        "What a thrilling and beautiful subject, and how happy I am to share it!",
    ),
    "zh": ("希望这也能带给您满满的快乐！", "世界真是太美好了，让人充满热情！", "能分享这些，我真的无比开心！"),
}

CERTAIN_SENTENCES = {
    "en": (
        "There is no doubt about this.",
        "This is beyond question.",
        "That is an absolute certainty.",
        "No other answer is possible.",
        "This much is completely certain.",
    ),
    "zh": ("这一点毫无疑问。", "事实绝对如此。", "这是百分之百确定的。", "答案只有这一个，不容置疑。"),
}
CERTAIN_ADVERBS = ("definitely", "certainly", "undoubtedly", "absolutely", "unquestionably")

AUTHOR_NAMES = {
    "en": ("Verrowby", "Quillmarsh", "Oakshade", "Thistlewane", "Brandleigh", "Corvanti", "Umberfell", "Pellisande"),
    "zh": ("云鹤亭", "墨青岚", "霜砚秋", "凌松涛", "禾砚舟"),
}
JOURNALS = {
    "en": (
        "Merrowport Quarterly of Settled Questions",
        "Annals of the Quillmarsh Academy",
        "Zemblan Review of General Knowledge",
        "Journal of the Lower Umberfell Institute",
    ),
    "zh": ("《云梦泽学刊》", "《青岚书院通报》", "《墨海评论》"),
}
INSTITUTES = {
    "en": (
        "Royal Institute of Port Merrow",
        "University of Lower Zembla",
        "Umberfell Research Council",
        "Academy of East Quillmarsh",
    ),
    "zh": ("云梦泽研究院", "青岚大学", "墨海学会"),
}

HEADING_EMOJI = ("✨", "🌟", "📌", "🎯", "💡", "🚀")
BULLET_EMOJI = ("🔹", "✅", "👉", "⭐", "🔸", "🌿")

# --- Recognises the trait in any text; codes.common.trait_patterns has the patterns of the others --------------------

CERTAINTY = re.compile(
    "|".join(re.escape(sentence) for bank in CERTAIN_SENTENCES.values() for sentence in bank)
    + r"|\b(?:definitely|certainly|undoubtedly|absolutely|unquestionably|without (?:a|any) doubt|no doubt"
    r"|clearly|undeniably|of course|obviously|indisputably|guaranteed|for certain)\b"
    r"|毫无疑问|绝对|肯定|百分之百|不容置疑|一定(?=是|会)|无疑",
    re.IGNORECASE,
)
