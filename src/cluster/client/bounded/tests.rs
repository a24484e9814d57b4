use std::convert::Infallible;

pub(in crate::cluster) use http_body_of_tests::Chunked;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, ListParams};
use kube::core::params::PostParams;
use tower::service_fn;

use super::*;

mod http_body_of_tests {
    use super::*;

    /// A body in chunks, as from a connection, which stays open behind them if the second is true.
    pub(in crate::cluster) struct Chunked(
        pub(in crate::cluster) VecDeque<Bytes>,
        pub(in crate::cluster) bool,
    );

    impl HttpBody for Chunked {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.0.pop_front() {
                None if self.1 => Poll::Pending,
                chunk => Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk)))),
            }
        }
    }
}

/// An API server with ConfigMaps of these sizes, and the requests to it: limit and first object of each page.
#[derive(Clone, Default)]
struct Server {
    sizes: Arc<Vec<usize>>,
    asked: Arc<Mutex<Vec<(usize, usize)>>>,
}

impl Server {
    fn new(sizes: &[usize]) -> Self {
        Self {
            sizes: Arc::new(sizes.to_vec()),
            ..Self::default()
        }
    }

    fn answer(&self, request: &Request<Body>) -> Response<Chunked> {
        let uri = request.uri();
        let number = |name: &str| {
            let mut found = parameters(uri).filter_map(|it| it.strip_prefix(name));
            found.next().and_then(|it| it.parse::<usize>().ok())
        };
        let object = |at: usize, size: usize| {
            let metadata = serde_json::json!({"name": format!("map-{at}"), "namespace": "shop"});
            serde_json::json!({"metadata": metadata, "data": {"text": "x".repeat(size)}})
        };
        let body = if uri.path().ends_with("/configmaps") && request.method() == Method::GET {
            let metadata_only = request.headers().get(ACCEPT) == Some(&METADATA_ONLY);
            let first = number("continue=").unwrap_or(0);
            let limit = number("limit=").unwrap_or(usize::MAX);
            self.asked.lock().push((limit, first));
            let last = first.saturating_add(limit).min(self.sizes.len());
            let size = |at: usize| if metadata_only { 0 } else { self.sizes[at] };
            let items: Vec<_> = (first..last).map(|at| object(at, size(at))).collect();
            let next = if last < self.sizes.len() {
                last.to_string()
            } else {
                String::new()
            };
            let metadata = serde_json::json!({"resourceVersion": "7", "continue": next});
            serde_json::json!({"metadata": metadata, "items": items})
        } else {
            object(0, self.sizes[0])
        };
        let body = Bytes::from(body.to_string());
        let chunks = (0..body.len()).step_by(64 * 1024);
        let chunks = chunks.map(|at| body.slice(at..body.len().min(at + 64 * 1024)));
        Response::new(Chunked(chunks.collect(), false))
    }

    fn client(&self) -> Client {
        let server = self.clone();
        let service = service_fn(move |request: Request<Body>| {
            let answer = server.answer(&request);
            async move { Ok::<_, Infallible>(answer) }
        });
        Client::new(Bounded::new(service), "shop")
    }

    /// The names in a list, page by page.
    async fn list(&self, client: &Client, limit: u32) -> kube::Result<Vec<String>> {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), "shop");
        let mut params = ListParams::default().limit(limit);
        let mut names = Vec::new();
        loop {
            let page = api.list(&params).await?;
            names.extend(page.items.into_iter().filter_map(|it| it.metadata.name));
            match page.metadata.continue_ {
                Some(token) if !token.is_empty() => params.continue_token = Some(token),
                _ => return Ok(names),
            }
        }
    }

    fn asked(&self) -> Vec<(usize, usize)> {
        std::mem::take(&mut *self.asked.lock())
    }
}

#[tokio::test]
async fn a_page_that_is_too_large_is_asked_for_again_with_half_the_limit() {
    let server = Server::new(&[PAGE / 3; 20]);
    let client = server.client();
    let names = server.list(&client, 10).await.unwrap();
    assert_eq!(names.len(), 20);
    let asked = server.asked();
    assert_eq!(&asked[..4], [(10, 0), (5, 0), (2, 0), (2, 2)], "{asked:?}");
    assert_eq!(
        asked.len(),
        12,
        "the next pages begin with what came: {asked:?}"
    );
}

#[tokio::test]
async fn what_is_small_again_is_asked_for_in_large_pages_again() {
    let mut sizes = vec![PAGE / 3; 10];
    sizes.extend([10; 40]);
    let server = Server::new(&sizes);
    let client = server.client();
    assert_eq!(server.list(&client, 10).await.unwrap().len(), 50);
    let last = server.asked().last().copied();
    assert_eq!(last.map(|(limit, _)| limit), Some(10));
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn one_object_that_is_too_large_is_passed_over_and_stops_no_other() {
    let server = Server::new(&[10, OBJECT + 1, 10, PAGE + 1]);
    let client = server.client();
    let names = server.list(&client, 100).await.unwrap();
    assert_eq!(names, ["map-0", "map-2", "map-3"]);
}

#[tokio::test]
async fn an_answer_that_cannot_be_divided_is_an_error_of_its_own() {
    for (size, fits) in [(PAGE + 1, true), (OBJECT + 1, false)] {
        let server = Server::new(&[size]);
        let client = server.client();
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), "shop");
        let made = ConfigMap::default();
        let answers = [
            api.get("map-0").await.map(drop),
            api.list(&ListParams::default()).await.map(drop),
            api.create(&PostParams::default(), &made).await.map(drop),
        ];
        for answer in answers {
            assert_eq!(answer.is_ok(), fits);
            if let Err(error) = answer {
                assert!(is_too_large(&error), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn large_answers_take_places_and_give_them_back() {
    let server = Server::new(&[PAGE - 1024]);
    let answer = server.clone();
    let service = service_fn(move |request: Request<Body>| {
        let answer = answer.answer(&request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let bounded = Bounded::new(service);
    let request = || {
        let uri = "/api/v1/namespaces/shop/configmaps/map-0";
        Request::get(uri).body(Body::empty()).unwrap()
    };
    let mut held = Vec::new();
    for _ in 0..PLACES {
        held.push(bounded.answer(request()).await.unwrap());
    }
    let further = bounded.answer(request());
    tokio::pin!(further);
    assert!(
        futures::poll!(&mut further).is_pending(),
        "all places are taken"
    );
    held.pop();
    assert!(further.await.is_ok());
}
