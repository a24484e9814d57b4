//! A list, page by page: the one place that follows continue tokens.
//!
//! `limit` is the number of objects that a page has at most; by bytes the client bounds it ([`super::bounded`]), so that
//! a page may have fewer, or none, and still not be the last.

use kube::api::ListParams;
use kube::core::ListMeta;

/// Where a list has got to.
#[derive(Debug)]
pub(crate) struct Pages {
    /// What to ask for next; `None` after the last page.
    next: Option<ListParams>,
}

impl Pages {
    /// Begins a list, with at most `limit` objects a page.
    pub(crate) fn of(params: ListParams, limit: u32) -> Self {
        Self {
            next: Some(params.limit(limit)),
        }
    }

    /// What to ask for; `None` when the list is complete.
    pub(crate) fn next(&self) -> Option<&ListParams> {
        self.next.as_ref()
    }

    /// A page came.
    pub(crate) fn came(&mut self, page: &ListMeta) {
        let token = page.continue_.as_ref().filter(|token| !token.is_empty());
        match (&mut self.next, token) {
            (Some(next), Some(token)) => next.continue_token = Some(token.clone()),
            _ => self.next = None,
        }
    }
}
