# cert-renew: `make demo` shows it, `make test` checks it. Rust and Go are needed; the rest is fetched or built once.

SHELL := /bin/bash -o pipefail
CARGO ?= cargo
.DEFAULT_GOAL := help

.PHONY: help
help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: demo
demo: ## Watch a certificate being renewed and its workloads restarted (KEEP=1 leaves it running)
	@$(CARGO) run --quiet -p test-programs -- beside $(CARGO) test --quiet --no-run --test demo
	@$(CARGO) test --quiet --test demo

.PHONY: test
test: format lint doc deny control-plane unit simulation integration demo ## Everything that CI checks

.PHONY: format
format:
	$(CARGO) fmt --all --check

.PHONY: lint
lint:
	$(CARGO) clippy --quiet --workspace --all-targets -- -D warnings

.PHONY: doc
doc: ## The documentation of all items, private ones too, without a dead link
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" $(CARGO) doc --quiet --workspace --no-deps --document-private-items

.PHONY: deny
deny: ## Licences, duplicates and sources of all dependencies
	"$$(tests/tools.sh cargo-deny)" --log-level error check bans licenses sources

.PHONY: audit
audit: ## Known vulnerabilities of all dependencies; needs the internet
	"$$(tests/tools.sh cargo-deny)" check advisories

.PHONY: msrv
msrv: ## Whether the oldest Rust that Cargo.toml names still compiles it; needs rustup
	rust="$$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)" && rustup toolchain install "$$rust" --profile minimal --no-self-update \
	  && CARGO_TARGET_DIR=target/msrv $(CARGO) "+$$rust" check --locked --lib --bins

.PHONY: unit
unit: ## The tests that need nothing but this repository
	$(CARGO) test --quiet --workspace --exclude simulation --lib --bins

SIMULATION_SECONDS ?= 600
# Seeds that nobody has lived before; those of a red run are printed.
SIMULATION_FIRST ?= $(shell date +%s)
# The operator's years on a cluster and a CA in memory, in a process for each seed.
SIMULATION = $(CARGO) run --quiet -p simulation --
# The same program, optimised. A seed is the same story in both.
SIMULATE = $(CARGO) run --quiet --profile simulate -p simulation --

.PHONY: simulation
simulation: ## New seeds of a simulated cluster for a minute, those that fail by name, and whether a seed is one story
	$(CARGO) test --quiet -p simulation
	$(SIMULATION) seeds 60 $(SIMULATION_FIRST)

.PHONY: simulate
simulate: ## Years in minutes: a measured year, scenes, planted faults, and seeds for SIMULATION_SECONDS; or one story (SEED=7, SCENE=T9), a million Secrets on paper (SCALE=1)
ifdef SEED
	@$(SIMULATION) story $(SEED)
else ifdef WILD
	@$(SIMULATION) story-wild $(WILD)
else ifdef SCENE
	@$(SIMULATION) story-of $(SCENE)
else ifdef SCALE
	$(SIMULATE) scale
else
	$(SIMULATE) year
	$(SIMULATE) scenes
	$(SIMULATE) planted
	$(SIMULATE) seeds $(SIMULATION_SECONDS) $(SIMULATION_FIRST)
	$(SIMULATE) wild-seeds $(SIMULATION_SECONDS) $(SIMULATION_FIRST)
endif

.PHONY: planted-mends
planted-mends: ## Take the mends of faults that only time shows back, one by one: the simulation has to find each fault
	$(SIMULATE) scenes
	CARGO="$(CARGO)" tests/mends.sh

.PHONY: shrink
shrink: ## The fewest faults, acts of users and Secrets with which a seed of the simulation still fails (SEED=7)
	@$(SIMULATE) shrink $(SEED)

.PHONY: model
model: ## The protocol in small, in all interleavings, and all planted faults: two minutes
	$(CARGO) test -p test-model --lib -- --include-ignored --skip two_faults --nocapture --test-threads 1

FUZZ_SECONDS ?= 60
.PHONY: fuzz
fuzz: ## Feed every reader of foreign bytes with hostile ones, each for FUZZ_SECONDS
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(CARGO) test --lib fuzz:: -- --nocapture --test-threads 2

# Before what runs the integration tests.
WITH_TOOLS = promtool="$$(tests/tools.sh promtool)" && chromium="$$(tests/tools.sh chromium)" \
	  && PATH="$$(dirname "$$promtool"):$$(dirname "$$chromium"):$$PATH"

.PHONY: integration
integration: control-plane integration-tools ## The tests on a real control plane and CA
	$(WITH_TOOLS) $(CARGO) test --test integration -- --test-threads 4

# Before the tests, which ask for them again: building one beside them would eat into their deadlines.
.PHONY: integration-tools
integration-tools:
	@for tool in helm knotd nginx unbound libfaketime; do tests/tools.sh $$tool >/dev/null || exit; done

.PHONY: chaos
chaos: control-plane node ## Kill a renewal at each request, fail each in each way, ten minutes of random faults, ten of a hostile tenant, a real node: an hour
	$(CARGO) test --test integration -- --ignored --nocapture --test-threads 1 \
	  kill_points::a_renewal_killed_at_each faults::requests::each_request chaos::after_long_chaos fleet::at_once::five_hundred hostile::

.PHONY: node
node: image node-programs ## The image as deploy/ has it on a real node, with real servers: needs root (NODE_SCENES=deployment,upgrade)
	CERT_RENEW_IMAGE=$(CURDIR)/target/image/cert-renew-$(ARCH).tar $(MAKE) node-scenes

.PHONY: node-scenes
node-scenes: node-programs
	$(CARGO) test --test integration -- --ignored --nocapture --exact node::the_operator_as_shipped_on_a_real_node

.PHONY: node-programs
node-programs:
	@$(CARGO) run --quiet -p test-programs -- node
	@tests/tools.sh helm >/dev/null
	@tests/tools.sh node >/dev/null

.PHONY: interop
interop: control-plane ## step-ca, Caddy's ACME server, BIND, PowerDNS, Route 53's API and Traefik beside Pebble and Knot (INTEROP_SCENES=Caddy,PowerDNS); the engines of Flux and Argo CD
	@for tool in knotd unbound named pdns_server moto_server; do tests/tools.sh $$tool >/dev/null || exit; done
	$(CARGO) test --test integration -- --ignored --nocapture --exact interop::other_cas_and_dns_hosts
	$(MAKE) interop-gitops

.PHONY: interop-gitops
interop-gitops: control-plane # The second half of it by itself.
	$(CARGO) test --test integration -- --ignored --nocapture --test-threads 2 interop::gitops::

.PHONY: versions
versions: control-plane integration-tools ## The integration tests on the oldest supported Kubernetes and on one between: an hour (MINORS=1.33)
	$(WITH_TOOLS) $(CARGO) test --test integration -- --ignored --nocapture --exact versions::every_test_on_other_minors

.PHONY: control-plane
control-plane: ## Build the API server, the controllers and the CA into a cache: the first time takes minutes
	@$(CARGO) run --quiet -p test-programs

.PHONY: build
build: ## The release binary
	$(CARGO) build --release --locked

ARCH ?= amd64
.PHONY: image
image: ## The image as an OCI archive in target/image, and its size (ARCH=arm64 cross-compiles; needs buildah)
	deploy/image.sh $(ARCH)

.PHONY: image-again
image-again: image ## Build the image once more, somewhere else, and compare: it has to be the same to the byte
	elsewhere="$$(mktemp -d)" && trap 'rm -rf "$$elsewhere"' EXIT \
	  && git archive HEAD | tar -x -C "$$elsewhere" && "$$elsewhere/deploy/image.sh" $(ARCH) \
	  && cmp target/image/cert-renew-$(ARCH).tar "$$elsewhere/target/image/cert-renew-$(ARCH).tar" \
	  && echo "the same: $$(sha256sum <target/image/cert-renew-$(ARCH).tar)"

.PHONY: image-check
image-check: image control-plane ## Run the image's own binary, by itself, against the test bench (ARCH=arm64 is emulated)
ifeq ($(ARCH),amd64)
	chroot --userspec=65532:65532 target/image/root-amd64 /cert-renew --version
	@# As OpenShift runs it: a user of the namespace's range, in the group root.
	chroot --userspec=1000680000:0 target/image/root-amd64 /cert-renew --version
else
	"$$(tests/tools.sh qemu-aarch64)" target/image/root-$(ARCH)/cert-renew --version
endif
	CERT_RENEW_PROGRAM=$(CURDIR)/target/image/root-$(ARCH)/cert-renew ARCH=$(ARCH) \
	  $(CARGO) test --test integration image:: -- --ignored

.PHONY: chart
chart: ## Copy the manifests of deploy/ and rbac/ into the chart, after a change of theirs
	deploy/chart.sh

.PHONY: dist
dist: chart ## One file that `kubectl apply -f` takes, and the chart's archive, in target/dist (IMAGE=registry.example.com/cert-renew)
	deploy/dist.sh $(IMAGE)

SYSTEM ?= windows-amd64
.PHONY: command
command: ## The command for another system, in target/command (SYSTEM=windows-amd64; darwin-amd64 and darwin-arm64 take a Mac)
	deploy/command.sh $(SYSTEM)

.PHONY: sbom
sbom: ## What the binary is made of, as CycloneDX: target/image/cert-renew.cdx.json
	deploy/sbom.sh amd64 target/image/cert-renew.cdx.json

.PHONY: release
release: ## Everything that a release publishes, in target/release-VERSION (VERSION=0.1.0; RELEASING.md)
	DARWIN="$(DARWIN)" deploy/release.sh "$(VERSION)" $(IMAGE)

# Only in the workflow of a release: it signs by that identity.
.PHONY: publish
publish:
	deploy/publish.sh "$(VERSION)"

.PHONY: docs
docs: ## The documents as a book, in target/book, without a dead link
	docs/book.sh

include benches/bench.mk
