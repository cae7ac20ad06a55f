//! The table of RPC methods: one row for each, from which all layers of [`Stack`](super::layers::Stack) draw.

/// What the layers must know of a method.
#[derive(Debug, PartialEq, Eq)]
pub struct Method {
    /// `/package.Service/Method`. A path that ends with `/` or `.` stands for all paths that begin with it.
    path: &'static str,
    /// The method's name in metrics and in the log.
    pub label: &'static str,
    /// Who may call it where clients are authenticated.
    pub role: RequiredRole,
    /// A call sends a stream of messages. Otherwise it sends one message.
    pub streaming: bool,
    /// How the clock ends a call.
    pub deadline: DeadlineKind,
    /// What happens to a call that is open while the server drains.
    pub drain: DrainKind,
    /// Whether calls in flight are bounded and waited for. Health checks and reflection are not.
    pub is_counted: bool,
}

/// What a method asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequiredRole {
    /// No authentication.
    Nobody,
    /// Any client that is known.
    Any,
    Classify,
    ReadOnly,
    Admin,
}

/// How the clock ends a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadlineKind {
    /// At the call's deadline: its `grpc-timeout`, or the configured default; at most the configured maximum.
    Unary,
    /// When no message has passed in either direction for `server.stream_idle_seconds`.
    Idle,
    /// Never.
    Never,
}

/// What happens to a call that is open while the server drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainKind {
    /// It is served to its end, as its deadline bounds it.
    Finish,
    /// The samples that have arrived are answered, then the stream ends.
    EndAfterSamples,
    /// The stream ends as soon as its answer pauses.
    EndAnswer,
}

use DeadlineKind::{Idle, Never, Unary};
use DrainKind::{EndAfterSamples, EndAnswer, Finish};
use RequiredRole::{Admin, Any, Classify, Nobody, ReadOnly};

impl Method {
    /// A method with one message and one answer.
    const fn unary(path: &'static str, label: &'static str, role: RequiredRole) -> Self {
        Self { path, label, role, streaming: false, deadline: Unary, drain: Finish, is_counted: true }
    }

    fn covers(&self, path: &str) -> bool {
        if self.path.ends_with(['/', '.']) { path.starts_with(self.path) } else { path == self.path }
    }
}

/// The label of paths that have no row of their own.
const OTHER: &str = "other";

/// All methods of both ports; of a path, the first row that covers it counts. After a service's methods comes
/// the row of its unknown ones, so that its callers are told UNIMPLEMENTED.
const METHODS: &[Method] = &[
    Method::unary("/delo.v1.Classifier/Classify", "Classify", Classify),
    Method::unary("/delo.v1.Classifier/ClassifyBatch", "ClassifyBatch", Classify),
    Method {
        path: "/delo.v1.Classifier/ClassifyStream",
        label: "ClassifyStream",
        role: Classify,
        streaming: true,
        deadline: Idle,
        drain: EndAfterSamples,
        is_counted: true,
    },
    Method::unary("/delo.v1.Classifier/ReportOutcome", "ReportOutcome", Classify),
    // Labels and limits tell how to call; whoever may call anything may know them.
    Method::unary("/delo.v1.Classifier/Describe", "Describe", Any),
    Method::unary("/delo.v1.Classifier/", OTHER, Classify),
    Method::unary("/delo.v1.Admin/LoadPartition", "LoadPartition", Admin),
    Method::unary("/delo.v1.Admin/UnloadPartition", "UnloadPartition", Admin),
    Method::unary("/delo.v1.Admin/RollbackPartition", "RollbackPartition", Admin),
    Method::unary("/delo.v1.Admin/PromoteTrial", "PromoteTrial", Admin),
    Method::unary("/delo.v1.Admin/AbortTrial", "AbortTrial", Admin),
    Method::unary("/delo.v1.Admin/ListPartitions", "ListPartitions", ReadOnly),
    Method::unary("/delo.v1.Admin/GetStatus", "GetStatus", ReadOnly),
    Method::unary("/delo.v1.Admin/SyncRegistry", "SyncRegistry", Admin),
    Method::unary("/inference.GRPCInferenceService/ModelInfer", "ModelInfer", Classify),
    Method::unary("/inference.GRPCInferenceService/ServerMetadata", "ServerMetadata", Any),
    Method::unary("/inference.GRPCInferenceService/ModelMetadata", "ModelMetadata", Any),
    Method::unary("/inference.GRPCInferenceService/ModelConfig", "ModelConfig", Any),
    Method::unary("/inference.GRPCInferenceService/RepositoryIndex", "RepositoryIndex", Any),
    Method::unary("/inference.GRPCInferenceService/RepositoryModelLoad", "RepositoryModelLoad", Admin),
    Method::unary("/inference.GRPCInferenceService/RepositoryModelUnload", "RepositoryModelUnload", Admin),
    Method { is_counted: false, ..Method::unary("/inference.GRPCInferenceService/ServerLive", "ServerLive", Nobody) },
    Method { is_counted: false, ..Method::unary("/inference.GRPCInferenceService/ServerReady", "ServerReady", Nobody) },
    Method { is_counted: false, ..Method::unary("/inference.GRPCInferenceService/ModelReady", "ModelReady", Nobody) },
    Method::unary("/inference.GRPCInferenceService/", OTHER, Any),
    // Health tells nothing that a port scan does not. A watch of it may stay open for ever.
    Method { deadline: Never, is_counted: false, ..Method::unary("/grpc.health.v1.Health/Check", "HealthCheck", Nobody) },
    Method { deadline: Never, drain: EndAnswer, is_counted: false, ..Method::unary("/grpc.health.v1.Health/Watch", "HealthWatch", Nobody) },
    Method { deadline: Never, is_counted: false, ..Method::unary("/grpc.health.v1.Health/", OTHER, Nobody) },
    Method {
        path: "/grpc.reflection.",
        label: "Reflection",
        role: Any,
        streaming: true,
        deadline: Idle,
        drain: EndAnswer,
        is_counted: false,
    },
];

/// A method that has no row is not open to every client because its row was forgotten.
static UNKNOWN: Method = Method { is_counted: false, ..Method::unary("", OTHER, Admin) };

/// The row of a call's path.
pub fn method(path: &str) -> &'static Method {
    METHODS.iter().find(|method| method.covers(path)).unwrap_or(&UNKNOWN)
}

/// The rows with a label of their own.
pub fn methods() -> impl Iterator<Item = &'static Method> {
    METHODS.iter().filter(|method| method.label != OTHER)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    /// Every method of the services that both ports serve: its path, whether its requests stream and whether
    /// its answers do.
    fn described() -> Vec<(String, bool, bool)> {
        let sets = [delo_proto::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET];
        let files = sets.into_iter().flat_map(|set| FileDescriptorSet::decode(set).unwrap().file);
        let mut methods = Vec::new();
        for file in files {
            for service in &file.service {
                for rpc in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), rpc.name());
                    methods.push((path, rpc.client_streaming(), rpc.server_streaming()));
                }
            }
        }
        methods
    }

    #[test]
    fn the_table_has_one_row_for_each_method_of_the_protos_and_no_others() {
        let in_protos: BTreeSet<String> = described().into_iter().map(|(path, ..)| path).collect();
        let rows: Vec<&str> = METHODS.iter().map(|method| method.path).filter(|path| !path.ends_with(['/', '.'])).collect();
        assert!(in_protos.len() >= 14, "{in_protos:?}");
        assert_eq!(rows.len(), in_protos.len());
        assert_eq!(rows.into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), in_protos);
    }

    #[test]
    fn a_row_says_of_its_method_what_the_protos_say() {
        for (path, requests_stream, answers_stream) in described() {
            let row = method(&path);
            let name = path.rsplit('/').next().unwrap();
            let label = if path.starts_with("/grpc.health.") { format!("Health{name}") } else { name.to_owned() };
            assert_eq!((row.label, row.streaming), (label.as_str(), requests_stream), "{path}");
            // A stream is not bounded by a deadline, and would hold up a drain.
            assert_eq!(row.drain != Finish, answers_stream, "{path}");
            assert!(!answers_stream || row.deadline != Unary, "{path}");
        }
    }

    #[test]
    fn the_rules_and_alerts_name_methods_of_the_table() {
        let rules = [include_str!("../../deploy/prometheus/rules/recording.yml"), include_str!("../../deploy/prometheus/rules/alerts.yml")];
        let named: BTreeSet<&str> = rules
            .iter()
            .flat_map(|rules| rules.split("method").skip(1))
            .filter_map(|rest| rest.strip_prefix("=\"").or_else(|| rest.strip_prefix("=~\""))?.split('"').next())
            .collect();
        assert!(named.contains("Classify"), "{named:?}");
        for name in named {
            let known = |row: &Method| name.strip_suffix(".*").map_or(row.label == name, |begin| row.label.starts_with(begin));
            assert!(METHODS.iter().any(known), "{name}");
        }
    }

    #[test]
    fn a_path_without_a_row_is_other_and_needs_the_admin_role() {
        assert_eq!(method("/anything/else"), &UNKNOWN);
        assert_eq!(method("/delo.v2.Classifier/Classify"), &UNKNOWN);
        assert_eq!((method("/delo.v1.Admin/New").label, method("/delo.v1.Admin/New").role), ("other", Admin));
        assert_eq!((method("/delo.v1.Classifier/New").label, method("/delo.v1.Classifier/New").role), ("other", Classify));
        assert_eq!(method("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo").label, "Reflection");
    }
}
