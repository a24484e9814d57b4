# `make bench`: the usual benchmarks; `make bench BENCH="start-100k wave-5000"` those that are named.
# The figures end up in target/bench/<name>.json.
#
# What is measured is the image's own program, which users run: it is built first. Another build is measured, and no image
# built, by CERT_RENEW_PROGRAM, for example target/release/cert-renew.
BENCH ?=
.PHONY: bench bench-pure
# Drawing measures nothing.
ifneq ($(BENCH),growth)
bench: $(if $(CERT_RENEW_PROGRAM),,image)
endif
bench:
	chromium="$$(tests/tools.sh chromium)" && PATH="$$(dirname "$$chromium"):$$PATH" \
	  cargo bench --bench operator -- $(BENCH)
bench-pure:
	cargo bench --bench pure
