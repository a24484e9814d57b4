//! Paged lists: the only code that follows continue tokens.
//!
//! `limit` is the most objects of a page; the client also bounds pages by bytes ([`super::bounded`]), so a page may
//! have fewer or none, and still not be the last.

use kube::api::ListParams;
use kube::core::ListMeta;

/// The position in a list.
#[derive(Debug)]
pub(crate) struct Pages {
    /// The next request; `None` after the last page.
    next: Option<ListParams>,
}

impl Pages {
    /// Begins a list with at most `limit` objects a page.
    pub(crate) fn of(params: ListParams, limit: u32) -> Self {
        Self {
            next: Some(params.limit(limit)),
        }
    }

    /// The next request; `None` when the list is complete.
    pub(crate) fn next(&self) -> Option<&ListParams> {
        self.next.as_ref()
    }

    /// Moves on after a page.
    pub(crate) fn came(&mut self, page: &ListMeta) {
        let token = page.continue_.as_ref().filter(|token| !token.is_empty());
        match (&mut self.next, token) {
            (Some(next), Some(token)) => next.continue_token = Some(token.clone()),
            _ => self.next = None,
        }
    }
}
