//! What the page can be narrowed to: states, an end that is near, a text, a namespace, an issuer.

use cert_renew_core::verdict::State;
use maud::{Markup, html};

use super::rows::{Answer, Group, Query, Which, Within};
use super::words::{Shown, state};

/// The states, each with the number of certificates in it, and what ends within a month.
pub(super) fn states(answer: &Answer, query: &Query) -> Markup {
    let total: usize = answer.states.iter().sum();
    let counts = State::ALL.into_iter().zip(answer.states);
    let trouble: usize = { counts.clone().filter(|(state, _)| state.is_trouble()) }
        .map(|(_, count)| count)
        .sum();
    let link = |which: Which, text: &str, count: usize| {
        let address = query.link(|query| {
            query.which = which;
            query.text.clear();
        });
        let current = (which == query.which).then_some("true");
        html! { li { a href=(address) aria-current=[current] { (text) " " (count) } } }
    };
    html! {
        nav aria-label="States" {
            ul {
                (link(Which::All, "all", total))
                (link(Which::Trouble, "in trouble", trouble))
                @for (one, count) in counts {
                    @if count > 0 { (link(Which::One(one), state(one), count)) }
                }
                @if query.within.is_none() { (within_a_month(answer.within_a_month, query)) }
            }
            (filters(query))
        }
    }
}

/// A link to what ends within a month, whatever its state is.
fn within_a_month(count: usize, query: &Query) -> Markup {
    let address = query.link(|query| {
        (query.which, query.within) = (Which::All, Some(Within::a_month()));
        query.text.clear();
    });
    html! { li { a href=(address) { "ends within 30 days " (count) } } }
}

/// The namespace, the issuer and the time that the page is narrowed to, each a link that leaves it out.
fn filters(query: &Query) -> Markup {
    let link = |what: &str, value: &str, address: String| {
        let text = format!("{what} {}", Shown(value));
        html! { li { a href=(address) aria-current="true" title="show all" { (text) " ×" } } }
    };
    let (namespace, issuer) = (query.namespace.as_deref(), query.issuer.as_deref());
    let within = query.within.as_ref();
    html! {
        @if namespace.is_some() || issuer.is_some() || within.is_some() {
            ul aria-label="Only those of" {
                @if let Some(value) = namespace {
                    (link("namespace", value, query.link(|query| query.namespace = None)))
                }
                @if let Some(value) = issuer {
                    (link("issuer", value, query.link(|query| query.issuer = None)))
                }
                @if let Some(within) = within {
                    (link("ends within", &within.text, query.link(|query| query.within = None)))
                }
            }
        }
    }
}

/// The field that finds, and the state.
pub(super) fn find(query: &Query) -> Markup {
    let option = |which: Which, text: &str| {
        html! { option value=(which.as_str()) selected[which == query.which] { (text) } }
    };
    html! {
        form {
            label for="q" { "Find" }
            input id="q" name="q" type="search" value=(Shown(&query.text))
                placeholder="namespace, name, host, issuer, workload, error";
            label for="state" { "State" }
            select id="state" name="state" {
                (option(Which::All, "all"))
                (option(Which::Trouble, "in trouble"))
                @for one in State::ALL { (option(Which::One(one), state(one))) }
            }
            @for (name, value) in query.beside_the_form() {
                input type="hidden" name=(name) value=(value);
            }
            button { "Show" }
            output for="q state" role="status" {}
        }
    }
}

/// How many certificates each namespace or issuer has, those with trouble first.
pub(super) fn groups(title: &str, groups: &[Group], parameter: &str, none: &str) -> Markup {
    html! {
        @if groups.len() > 1 {
            details {
                summary { (title) }
                ul {
                    @for group in groups {
                        li {
                            a href={ "?" (encoded(&[(parameter, &group.name)])) } title=(format!("only those {none}")) {
                                (Shown(&group.name)) " " (group.total)
                                @if group.trouble > 0 { " " span.bad { "(" (group.trouble) " in trouble)" } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A query string.
pub(super) fn encoded(pairs: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new())
        .extend_pairs(pairs)
        .finish()
}
