#!/usr/bin/env bash
# Stage 2: train a reward model under DeepSpeed.
#
#   bash run_training.sh                                                    the embedded tiny model, on this machine
#   MODEL_PATH=meta-llama/Llama-3.1-8B-Instruct DATA_PATH="a.jsonl b.jsonl" bash run_training.sh --bf16 --num_train_epochs 2
#   HOSTFILE=hosts.txt NUM_GPUS=8 DS_CONFIG=configs/ds_z3_config.json ... bash run_training.sh      several nodes
#
# Edit the settings here, set them in the environment, or add flags: every transformers training argument is one.
set -euo pipefail
cd "$(dirname "$0")"

MODEL_PATH=${MODEL_PATH:-}                        # a folder or a Hub name; without one a tiny model is made on the spot
DATA_PATH=${DATA_PATH:-output/construction/train.jsonl}   # files of train records, separated by spaces
TRAIN_MODE=${TRAIN_MODE:-contrast}                # contrast | pairwise | bradley_terry
OUTPUT_PATH=${OUTPUT_PATH:-output/reward_model_$TRAIN_MODE}
TEMPERATURE=${TEMPERATURE:-0.5}                   # contrast: divides the scores
MARGIN=${MARGIN:-1.0}                             # pairwise: the score difference that is enough
DS_CONFIG=${DS_CONFIG:-configs/ds_z2_config.json} # ZeRO-2 or ZeRO-3, each also with _offload
NUM_GPUS=${NUM_GPUS:-}                            # per node; all that are found, else 2 CPU ranks
HOSTFILE=${HOSTFILE:-}                            # several nodes: lines of "host slots=8"
MASTER_PORT=${MASTER_PORT:-}                      # where the ranks meet; a free port on one node, 29500 on several

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
# DeepSpeed looks for ninja, and for the Python of its ranks, on the PATH.
PATH=$(cd "$(dirname "$(command -v "$PYTHON")")" && pwd):$PATH
export PATH

if [ -z "$MODEL_PATH" ]; then
  MODEL_PATH=output/tiny_model
  echo "no MODEL_PATH: training the tiny embedded model, which knows nothing and only shows that everything works"
  [ -f "$MODEL_PATH/config.json" ] || "$PYTHON" -m codes.train.tiny_model --output_dir "$MODEL_PATH"
fi
if [ ! -f "$DATA_PATH" ] && [ "$DATA_PATH" = output/construction/train.jsonl ]; then
  echo "no $DATA_PATH (run_construction.sh makes it): training on data/train/sample.jsonl"
  DATA_PATH=data/train/sample.jsonl
fi

# What DeepSpeed compiles is kept here rather than in a cache that other environments share; a lock that a killed build
# left behind would make every later run wait for ever.
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$PWD/output/torch_extensions}
find "$TORCH_EXTENSIONS_DIR" -name lock -mmin +15 -delete 2>/dev/null || true

gpus=$( (nvidia-smi --list-gpus 2>/dev/null || true) | grep -c . || true)
if [ -z "$MASTER_PORT" ] && [ -z "$HOSTFILE" ]; then
  MASTER_PORT=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
fi
if [ -n "$HOSTFILE" ]; then
  launcher=(--hostfile "$HOSTFILE" ${NUM_GPUS:+--num_gpus "$NUM_GPUS"} --module)
elif [ "$gpus" -gt 0 ]; then
  launcher=(--num_gpus "${NUM_GPUS:-$gpus}" --module)
else
  export DS_ACCELERATOR=cpu
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  launcher=(--num_accelerators "${NUM_GPUS:-2}" --no_local_rank --module)
  [ -n "$(find "$TORCH_EXTENSIONS_DIR" -name '*.so' 2>/dev/null)" ] ||
    echo "the first run on CPU ranks compiles a small operation of DeepSpeed's, which takes half a minute or more"
fi

if [ -f "$DATA_PATH" ]; then
  data=("$DATA_PATH") # one file, with spaces in its name or without
else
  read -r -a data <<<"$DATA_PATH"
fi
exec deepspeed --log_level warning ${MASTER_PORT:+--master_port "$MASTER_PORT"} "${launcher[@]}" codes.train.train_reward_model \
  --model_name_or_path "$MODEL_PATH" --train_data_path "${data[@]}" --output_dir "$OUTPUT_PATH" \
  --training_mode "$TRAIN_MODE" --temperature "$TEMPERATURE" --margin "$MARGIN" --deepspeed "$DS_CONFIG" "$@"
