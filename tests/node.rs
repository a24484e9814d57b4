//! `make node`: the operator as shipped on a real node, in whose pods real servers serve, while a client shakes hands every
//! 50 ms. A table says what each scene found.
//!
//! `NODE_SCENES=deployment,upgrade` runs some of them; `CERT_RENEW_IMAGE` names the archive of `make image`, without which
//! the image is packed from the program of the tests. What explains a failure is kept in `target/node`.

use test_bench::{Result, run_on_a_node};

#[tokio::test]
#[ignore = "make node runs it: it needs root, and minutes"]
async fn the_operator_as_shipped_on_a_real_node() -> Result<()> {
    run_on_a_node("node::inside::scenes").await
}

mod inside;
mod site;
