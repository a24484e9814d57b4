//! Bounds answers of the API server by bytes: a layer directly above the connections.
//!
//! kube collects an answer as a whole, however large, and `limit` bounds a page of a list by its number of objects: a
//! hundred Deployments of one tenant may be 130 MB. This layer reads the answer first, and drops one that is too large.
//! It then requests the page again with half the `limit`, which a continue token allows. A single object that is too
//! large is skipped: its page is empty, and the log names it. Callers only see smaller pages.
//!
//! A watch sends one object at a time, and many watches can bring many large objects ([`lines`]). The few watches of
//! Secrets are passed through: each holds one buffer of a few megabytes.

mod lines;

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, request};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use kube::client::Body;
use parking_lot::{Mutex, MutexGuard};
use serde::Deserialize;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::{BoxError, Service, ServiceExt as _};

use self::lines::Lines;

/// Most bytes of a small answer, as nearly every one is. It is read without a permit: a few dozen requests run at a
/// time.
const SMALL: usize = 256 * 1024;
/// Most bytes of a page of a list. A page of a hundred ordinary workloads is 1 MB.
const PAGE: usize = 3 * 1024 * 1024;
/// Most bytes of an answer that cannot be divided. etcd takes objects of 1.5 MiB (`--max-request-bytes`), and JSON
/// writes `<` and control characters as six bytes each.
const OBJECT: usize = 12 * 1024 * 1024;
/// Most pages in memory; an answer of more than a page takes all permits. kube makes two copies of an answer before it
/// is decoded: 18 MiB of pages, or 36 MiB for one object of the largest size.
const PLACES: u32 = 2;
/// Most lists whose smaller `limit` is remembered: one for each kind and namespace being listed.
const REMEMBERED: usize = 256;
/// An object's name and version without the object itself (Kubernetes API concepts, "Metadata-only fetches").
const METADATA_ONLY: HeaderValue =
    HeaderValue::from_static("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");

/// The answer is larger than any that is read.
#[derive(Debug, Error)]
#[error("the answer to {method} {path} has more than {OBJECT} bytes and is not read")]
pub(in crate::cluster) struct TooLarge {
    method: Method,
    path: String,
}

/// Whether the answer was dropped because of its size. A retry would return the same.
pub(crate) fn is_too_large(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Service(error) if error.is::<TooLarge>())
}

/// Bounds the answers of a service.
#[derive(Clone)]
pub(in crate::cluster) struct Bounded<S> {
    service: S,
    shared: Arc<Shared>,
}

struct Shared {
    places: Arc<Semaphore>,
    /// The `limit` with which a list stayed within its bound, by path and selectors: the next page starts with it.
    limits: Mutex<HashMap<String, u32>>,
}

/// The body of an answer.
pub(in crate::cluster) enum Answer<B> {
    /// Passed through.
    Stream(B),
    /// A watch, line by line.
    Lines(Lines<B>),
    /// Already read, with the permit that it holds.
    Whole(VecDeque<Bytes>, Option<OwnedSemaphorePermit>),
}

impl<S> Bounded<S> {
    pub(in crate::cluster) fn new(service: S) -> Self {
        let places = usize::try_from(PLACES).unwrap_or(1);
        Self {
            service,
            shared: Arc::new(Shared {
                places: Arc::new(Semaphore::new(places)),
                limits: Mutex::default(),
            }),
        }
    }
}

impl<S, B> Service<Request<Body>> for Bounded<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Answer<B>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.service.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let bounded = self.clone();
        Box::pin(async move { bounded.answer(request).await })
    }
}

impl<S, B> Bounded<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone,
    S::Error: Into<BoxError>,
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    async fn answer(&self, request: Request<Body>) -> Result<Response<Answer<B>>, BoxError> {
        if parameters(request.uri()).any(|it| it.starts_with("watch=")) {
            let few = request.uri().path().ends_with("/secrets");
            let answer = self.ask(request).await?;
            return Ok(answer.map(|body| match few {
                true => Answer::Stream(body),
                false => Answer::Lines(Lines::new(body, Arc::clone(&self.shared.places))),
            }));
        }
        if request.method() != Method::GET {
            // The request is not repeated for its answer: it has been executed.
            let too_large = too_large(request.method(), request.uri());
            let answer = self.ask(request).await?;
            return self.read(answer, OBJECT).await?.ok_or(too_large);
        }
        let (parts, _) = request.into_parts();
        let asked = limit(&parts.uri);
        let list = list_of(&parts.uri);
        let remembered = self.shared.limits().get(&list).copied();
        let mut limit = asked.map(|asked| remembered.map_or(asked, |it| it.min(asked)));
        loop {
            let answer = self.ask(get(&parts, limit)?).await?;
            if let Some(answer) = self.read(answer, PAGE).await? {
                self.shared.fits(list, asked, limit, size(&answer));
                return Ok(answer);
            }
            match limit {
                Some(number) if number > 1 => limit = Some(number / 2),
                _ => break,
            }
            self.shared.remember(&list, limit);
        }
        let answer = self.ask(get(&parts, limit)?).await?;
        match self.read(answer, OBJECT).await? {
            Some(answer) => Ok(answer),
            None if limit.is_some() => self.pass_over(&parts).await,
            None => Err(too_large(&parts.method, &parts.uri)),
        }
    }

    async fn ask(&self, request: Request<Body>) -> Result<Response<B>, BoxError> {
        let answer = self.service.clone().oneshot(request).await;
        answer.map_err(Into::into)
    }

    /// The whole answer; `None` if it has more than `most` bytes.
    async fn read(
        &self,
        answer: Response<B>,
        most: usize,
    ) -> Result<Option<Response<Answer<B>>>, BoxError> {
        let (parts, mut body) = answer.into_parts();
        let said = parts.headers.get(CONTENT_LENGTH);
        let said = said.and_then(|it| it.to_str().ok()?.parse::<usize>().ok());
        if said.is_some_and(|length| length > most) {
            return Ok(None);
        }
        let (mut chunks, mut size, mut place) = (VecDeque::new(), 0_usize, None);
        loop {
            let next = |context: &mut Context<'_>| {
                let frame = Pin::new(&mut body).poll_frame(context);
                frame.map(|it| it.transpose().map_err(Into::into))
            };
            let frame: Result<_, BoxError> = poll_fn(next).await;
            let Some(frame) = frame? else {
                break;
            };
            let Ok(chunk) = frame.into_data() else {
                continue;
            };
            size = size.saturating_add(chunk.len());
            if size > most {
                return Ok(None);
            }
            chunks.push_back(chunk);
            if size > SMALL && place.is_none() {
                // Reading pauses until then. Each answer waits only once, so there is no deadlock.
                let places = if most > PAGE { PLACES } else { 1 };
                let free = Arc::clone(&self.shared.places).acquire_many_owned(places);
                place = free.await.ok();
            }
        }
        let body = Answer::Whole(chunks, place);
        Ok(Some(Response::from_parts(parts, body)))
    }

    /// An empty page in place of one object, which the log names.
    async fn pass_over(&self, parts: &request::Parts) -> Result<Response<Answer<B>>, BoxError> {
        let too_large = || too_large(&parts.method, &parts.uri);
        let mut request = get(parts, Some(1))?;
        request.headers_mut().insert(ACCEPT, METADATA_ONLY);
        let answer = self.ask(request).await?;
        if answer.status() != StatusCode::OK {
            return Err(too_large());
        }
        let answer = self.read(answer, OBJECT).await?.ok_or_else(too_large)?;
        let Answer::Whole(chunks, place) = answer.into_body() else {
            return Err(too_large());
        };
        let text: Vec<u8> = chunks.into_iter().flatten().collect();
        let page: Page = serde_json::from_slice(&text).map_err(|_| too_large())?;
        drop((text, place));
        // A server that ignores `limit` would seem to have no other objects.
        if page.items.len() > 1 {
            return Err(too_large());
        }
        for Item { metadata: it } in &page.items {
            tracing::warn!(
                list = parts.uri.path(),
                namespace = it.namespace,
                name = it.name,
                "an object of more than {OBJECT} bytes is passed over"
            );
        }
        let metadata = serde_json::json!({
            "continue": page.metadata.r#continue, "resourceVersion": page.metadata.resource_version,
        });
        let page = serde_json::json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": []});
        let body = Answer::Whole(VecDeque::from([Bytes::from(page.to_string())]), None);
        let mut answer = Response::new(body);
        let json = HeaderValue::from_static("application/json");
        answer.headers_mut().insert(CONTENT_TYPE, json);
        Ok(answer)
    }
}

#[derive(Deserialize)]
struct Page {
    metadata: PageMeta,
    items: Vec<Item>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PageMeta {
    r#continue: String,
    resource_version: String,
}

#[derive(Deserialize)]
struct Item {
    metadata: Place,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Place {
    namespace: String,
    name: String,
}

impl Shared {
    fn limits(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.limits.lock()
    }

    fn remember(&self, list: &str, limit: Option<u32>) {
        let mut limits = self.limits();
        if limits.len() >= REMEMBERED {
            limits.clear();
        }
        limits.extend(limit.map(|limit| (list.to_owned(), limit)));
    }

    /// Records a page within its bound: if it was much smaller, the next one may have more objects.
    fn fits(&self, list: String, asked: Option<u32>, limit: Option<u32>, size: usize) {
        let (Some(asked), Some(limit)) = (asked, limit) else {
            return;
        };
        if limit >= asked || size > PAGE / 4 {
            return;
        }
        let more = limit.saturating_mul(2);
        if more >= asked {
            self.limits().remove(&list);
        } else {
            self.limits().insert(list, more);
        }
    }
}

fn too_large(method: &Method, uri: &Uri) -> BoxError {
    let (method, path) = (method.clone(), uri.path().to_owned());
    TooLarge { method, path }.into()
}

fn size<B>(answer: &Response<Answer<B>>) -> usize {
    match answer.body() {
        Answer::Stream(_) | Answer::Lines(_) => 0,
        Answer::Whole(chunks, _) => chunks.iter().map(Bytes::len).sum(),
    }
}

fn parameters(uri: &Uri) -> impl Iterator<Item = &str> {
    let parameters = uri.query().unwrap_or_default().split('&');
    parameters.filter(|it| !it.is_empty())
}

fn limit(uri: &Uri) -> Option<u32> {
    let mut limits = parameters(uri).filter_map(|it| it.strip_prefix("limit="));
    limits.next()?.parse().ok()
}

/// The part of the URI that all pages of a list share.
fn list_of(uri: &Uri) -> String {
    let paging = |it: &&str| it.starts_with("limit=") || it.starts_with("continue=");
    let others = parameters(uri).filter(|it| !paging(it));
    let others: Vec<&str> = others.collect();
    format!("{}?{}", uri.path(), others.join("&"))
}

/// The request again; a GET has no body.
fn get(parts: &request::Parts, limit: Option<u32>) -> Result<Request<Body>, BoxError> {
    let mut parts = parts.clone();
    if let Some(limit) = limit {
        let others = parameters(&parts.uri).filter(|it| !it.starts_with("limit="));
        let query = others.map(|it| format!("{it}&")).collect::<String>();
        let target = format!("{}?{query}limit={limit}", parts.uri.path());
        let mut uri = parts.uri.into_parts();
        uri.path_and_query = Some(target.parse()?);
        parts.uri = Uri::from_parts(uri)?;
    }
    Ok(Request::from_parts(parts, Body::empty()))
}

impl<B> HttpBody for Answer<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Stream(body) => {
                let frame = Pin::new(body).poll_frame(context);
                frame.map(|it| it.map(|it| it.map_err(Into::into)))
            }
            Self::Lines(lines) => lines.poll(context),
            Self::Whole(chunks, _) => {
                Poll::Ready(chunks.pop_front().map(|chunk| Ok(Frame::data(chunk))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Stream(body) => body.is_end_stream(),
            Self::Lines(lines) => lines.is_ended(),
            Self::Whole(chunks, _) => chunks.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Stream(body) => body.size_hint(),
            Self::Lines(_) => SizeHint::default(),
            Self::Whole(chunks, _) => {
                let size = chunks.iter().map(Bytes::len).sum::<usize>();
                SizeHint::with_exact(u64::try_from(size).unwrap_or(u64::MAX))
            }
        }
    }
}

#[cfg(test)]
pub(in crate::cluster) mod tests;
