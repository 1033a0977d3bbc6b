#!/usr/bin/env bash
# From nothing to a trained, evaluated and exported DDRNet23 on a laptop: real handwritten digits, on the CPU.
set -euo pipefail

if [ $# -ne 0 ]; then
  echo "usage: bash $0   (no arguments; everything goes under the project's folder)" >&2
  exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
source scripts/environment.sh

make_venv .venv -r requirements.txt scikit-learn
python=$root/.venv/bin/python
config=$root/src/configs/ddrnet23_digits.yaml
run=$root/runs/digits
began=$SECONDS

[ -d data/digits ] || "$python" scripts/make_digits.py --out data/digits
mkdir -p "$run"
cd "$run"
if [ -f ckpt_0/DDRNet23.ckpt ]; then
  echo "already trained: $run/ckpt_0/DDRNet23.ckpt (remove $run to train anew)"
else
  "$python" "$root/train.py" --ddr_config "$config" --data_url "$root/data/digits"
fi
"$python" "$root/export.py" --ddr_config "$config" --data_url "$root/data/digits" --pretrained ckpt_0/DDRNet23.ckpt
"$python" "$root/eval.py" --ddr_config "$config" --data_url "$root/data/digits" --pretrained ckpt_0/DDRNet23.ckpt
cat <<END

done in $((SECONDS - began)) s
  data      $root/data/digits
  weights   $run/ckpt_0/DDRNet23.ckpt (the last), $run/ckpt_0/DDRNet23_best.ckpt (the best)
  curves    $run/curves.png, from $run/metrics.jsonl
  serving   $run/DDRNet23.mindir, $run/DDRNet23.json
try         source $root/.venv/bin/activate; cd $root
            python eval.py --pretrained runs/digits/ckpt_0/DDRNet23.ckpt --images data/digits/val/7/*.png
            python eval.py --pretrained runs/digits/ckpt_0/DDRNet23.ckpt --report runs/digits/report
END
