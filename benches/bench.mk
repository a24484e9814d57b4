# `make bench`: the usual benchmarks; `make bench BENCH="start-100k wave-5000"` those that are named.
# The figures end up in target/bench/<name>.json.
BENCH ?=
.PHONY: bench bench-pure
bench:
	chromium="$$(tests/tools.sh chromium)" && PATH="$$(dirname "$$chromium"):$$PATH" \
	  cargo bench --bench operator -- $(BENCH)
bench-pure:
	cargo bench --bench pure
