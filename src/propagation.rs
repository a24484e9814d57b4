//! stub
pub async fn run(
    _: std::sync::Arc<crate::context::Context>,
    planning: crate::controller::Planning,
    tickets: Vec<crate::controller::Ticket>,
) {
    drop(planning);
    drop(tickets);
}
