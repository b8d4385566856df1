#!/bin/bash
# Everything that wants a GPU, in one go of two minutes: build, check, race, options, cycles, times. FA3_LIB: vLLM's _vllm_fa3_C (packed
# sequences only), if there. Each step has a time limit: a hang is a bug in the barriers.
cd "$(dirname "$0")" || exit
out=${OUT:-/tmp/hopper_forward}; mkdir -p "$out"
libs=/tmp/forward_variants
fa3=${FA3_LIB:+--fa3 $FA3_LIB}
timeout 120 python3 sweep.py variants.txt --check --race --cycles 128:0:8192,128:1:8192,64:1:8192,256:1:8192,192/128:1:8192 > "$out/check" 2>&1
for d in d128 d64 d96 d192 d256 half128; do timeout 60 python3 test_options.py $libs/$d.so > "$out/options_$d" 2>&1 & done
timeout 60 python3 test_fp8.py $libs/fp8_*.so > "$out/options_fp8" 2>&1 &
wait
cat "$out"/options_* > "$out/options"
rows=$(for d in 128 64 256; do for c in 0 1; do for s in 512 1024 2048 4096 8192 16384; do printf '%s:%s:%s,' $d $c $s; done; done; done)
timeout 120 python3 sweep.py variants.txt $fa3 --rows "${rows}192/128:1:2048,192/128:1:8192,192/128:0:8192,96:0:8192,96:1:8192" > "$out/times" 2>&1
timeout 60 python3 test_fp8.py --bench --rows 512,1024,2048,4096,8192,16384 $libs/fp8_*.so > "$out/times_fp8" 2>&1
timeout 60 python3 test_options.py --bench $fa3 $libs/d128.so > "$out/options_times" 2>&1
tail -n 60 "$out"/check "$out"/options "$out"/times "$out"/times_fp8 "$out"/options_times
