//! What is shipped beside the binary: Helm chart, Kubernetes manifest, systemd unit, Dockerfile.
//!
//! The tools come from `.ci/install`. A test that misses one says so and passes; with `CI` set it
//! fails.

mod packaging {
    pub mod files;
    pub mod manifests;
    pub mod tools;
    pub mod values;
}
