//! Stub.

/// Stub.
pub async fn run(_config: crate::config::Config) -> anyhow::Result<()> {
    todo!()
}
