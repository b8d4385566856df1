#!/bin/sh
# Builds variants side by side, checks them, times them, in one go on a machine with a Hopper GPU: minutes there are short.
# usage: sweep.sh OUTPUT_FOLDER [FLASHMLA_TORCH_LIBRARY.so] < variants       a variant is a line: NAME FLAGS...
out=$1; rival=${2:+--flashmla $2}; b=$(mktemp -d)
export PYTHONUNBUFFERED=1
./build.sh "$b/watch.so" -DFEW -DWATCHDOG > "$b/watch.log" 2>&1 &
names=
while read -r name flags; do
    [ -n "$name" ] || continue
    names="$names $b/$name.so"
    ./build.sh "$b/$name.so" -DFEW $flags > "$b/$name.log" 2>&1 &
done
wait
grep -lE 'C75(07|08|10|11|12|13|14)' "$b"/*.log
timeout 40 python3 test.py "$b/watch.so" first || exit 1
fine=
for l in $names; do timeout 60 python3 test.py "$l" few > "$out/test.txt" 2>&1 && fine="$fine $l" || { echo "$l fails"; tail -5 "$out/test.txt"; }; done
timeout 200 python3 bench.py $rival --rounds 4 $fine 2>&1 | tee "$out/bench.txt"
