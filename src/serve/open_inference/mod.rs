//! The Open Inference Protocol, version 2: what the server answers, as one model that finds the tasks itself, and
//! each task as a model.
mod metadata;
pub mod tensors;

use futures::{StreamExt, TryStreamExt, stream};
use tonic::{Request, Response, Status};
use tonic_types::StatusExt;

use super::admin::Admin;
use super::batcher::Priority;
use super::classifier::{CallOptions, Classifier, classify};
use super::lifecycle::State;
use super::reason::Reason;
use super::status::invalid;
use delo_proto as pb;
use delo_proto::admin_server::Admin as _;
use delo_proto::inference as v2;
use delo_proto::load_partition_request::Source;
use tensors::Wanted;

/// The model that finds each sample's task.
pub const MODEL: &str = "delo";

/// Answers the protocol's calls.
#[derive(Clone)]
pub struct OpenInference {
    pub classifier: Classifier,
    pub admin: Admin,
    /// Whether partitions may be loaded and unloaded through this port.
    pub may_change: bool,
}

#[tonic::async_trait]
impl v2::grpc_inference_service_server::GrpcInferenceService for OpenInference {
    async fn server_live(&self, _: Request<v2::ServerLiveRequest>) -> Result<Response<v2::ServerLiveResponse>, Status> {
        Ok(Response::new(v2::ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<v2::ServerReadyRequest>) -> Result<Response<v2::ServerReadyResponse>, Status> {
        Ok(Response::new(v2::ServerReadyResponse { ready: self.admin.lifecycle.state() == State::Serving }))
    }

    /// A model that is not there is not ready, as the protocol wants it.
    async fn model_ready(&self, request: Request<v2::ModelReadyRequest>) -> Result<Response<v2::ModelReadyResponse>, Status> {
        let v2::ModelReadyRequest { name, version } = request.into_inner();
        let serves = self.admin.lifecycle.state() == State::Serving;
        Ok(Response::new(v2::ModelReadyResponse { ready: serves && self.versions(&name, &version).is_ok() }))
    }

    async fn server_metadata(&self, _: Request<v2::ServerMetadataRequest>) -> Result<Response<v2::ServerMetadataResponse>, Status> {
        Ok(Response::new(metadata::server()))
    }

    async fn model_metadata(&self, request: Request<v2::ModelMetadataRequest>) -> Result<Response<v2::ModelMetadataResponse>, Status> {
        let v2::ModelMetadataRequest { name, version } = request.into_inner();
        let versions = self.versions(&name, &version)?;
        Ok(Response::new(metadata::model(name, versions)))
    }

    async fn model_config(&self, request: Request<v2::ModelConfigRequest>) -> Result<Response<v2::ModelConfigResponse>, Status> {
        let v2::ModelConfigRequest { name, version } = request.into_inner();
        self.versions(&name, &version)?;
        let most = self.classifier.config.batching.max_samples_per_call;
        Ok(Response::new(v2::ModelConfigResponse { config: Some(metadata::config(name, most)) }))
    }

    async fn model_infer(&self, request: Request<v2::ModelInferRequest>) -> Result<Response<v2::ModelInferResponse>, Status> {
        let (model, config) = (self.classifier.model.ready()?, &self.classifier.config);
        let options = CallOptions::of(&request, Priority::Interactive, super::classifier::deadline(&request, config));
        let request = request.into_inner();
        self.versions(&request.model_name, &request.model_version)?;
        let wanted = Wanted::of(&request)?;
        let samples = tensors::samples(&request)?;
        let most = config.batching.max_samples_per_call;
        if samples.len() > most {
            let message = format!("{} samples, more than the {most} allowed in one call", samples.len());
            return Err(Reason::InvalidInput.refuse(&invalid("inputs.shape", message)));
        }
        let options = if samples.len() > 1 { options.of_many() } else { options };
        let answers = stream::iter(samples.into_iter().enumerate()).map(|(i, sample)| {
            let options = options.clone();
            async move { classify(model, sample, options).await.map_err(|status| of_sample(&status, i)) }
        });
        let answers: Vec<pb::ClassifyResponse> = answers.buffered(self.classifier.samples_in_flight()).try_collect().await?;
        Ok(Response::new(tensors::response(request, &answers, &wanted)?))
    }

    async fn repository_index(&self, _: Request<v2::RepositoryIndexRequest>) -> Result<Response<v2::RepositoryIndexResponse>, Status> {
        let catalogue = self.classifier.model.ready()?.registry.catalogue();
        let index = |name: &str, version: String, ready: bool| v2::repository_index_response::ModelIndex {
            name: name.to_owned(),
            version,
            state: if ready { "READY" } else { "UNAVAILABLE" }.to_owned(),
            reason: if ready { String::new() } else { "no partition is loaded".to_owned() },
        };
        let whole = index(MODEL, "1".to_owned(), !catalogue.is_empty());
        let tasks = catalogue.residents().map(|resident| index(resident.task(), resident.version.to_string(), true));
        Ok(Response::new(v2::RepositoryIndexResponse { models: std::iter::once(whole).chain(tasks).collect() }))
    }

    async fn repository_model_load(
        &self,
        request: Request<v2::RepositoryModelLoadRequest>,
    ) -> Result<Response<v2::RepositoryModelLoadResponse>, Status> {
        self.check_may_change()?;
        let (metadata, extensions, v2::RepositoryModelLoadRequest { model_name, parameters, .. }) = request.into_parts();
        use v2::model_repository_parameter::ParameterChoice::{BytesParam, StringParam};
        let mut source = Source::Uri(format!("{model_name}.safetensors"));
        for (name, parameter) in parameters {
            source = match (name.as_str(), parameter.parameter_choice) {
                ("uri", Some(StringParam(uri))) => Source::Uri(uri),
                (name, Some(BytesParam(bytes))) if name.starts_with("file:") => Source::Artifact(bytes),
                // Triton's clients send a configuration with the files that they upload.
                ("config", _) => continue,
                _ => return Err(invalid(format!("parameters.{name}"), "give uri as a text, or file:NAME as bytes")),
            };
        }
        let load = pb::LoadPartitionRequest { source: Some(source), ..Default::default() };
        let loaded = self.admin.load_partition(Request::from_parts(metadata, extensions, load)).await?.into_inner();
        let task = loaded.partition.map(|partition| partition.task).unwrap_or_default();
        if task != model_name {
            tracing::warn!(task, "RepositoryModelLoad named the model otherwise than the artifact's task: the artifact's name counts");
        }
        Ok(Response::new(v2::RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<v2::RepositoryModelUnloadRequest>,
    ) -> Result<Response<v2::RepositoryModelUnloadResponse>, Status> {
        self.check_may_change()?;
        let unload = request.map(|request| pb::UnloadPartitionRequest { task: request.model_name, request_id: String::new() });
        self.admin.unload_partition(unload).await?;
        Ok(Response::new(v2::RepositoryModelUnloadResponse {}))
    }
}

impl OpenInference {
    /// The versions of a model.
    ///
    /// # Errors
    /// NOT_FOUND: there is no such model, or not in this version.
    fn versions(&self, name: &str, version: &str) -> Result<Vec<String>, Status> {
        let catalogue = self.classifier.model.ready()?.registry.catalogue();
        let there: Option<Vec<String>> = match catalogue.get(name) {
            _ if name == MODEL => Some(vec!["1".to_owned()]),
            resident => resident.map(|resident| vec![resident.version.to_string()]),
        };
        let there = there
            .ok_or_else(|| Status::not_found("no model of this name is loaded: RepositoryIndex lists them; delo finds the task itself"))?;
        if !version.is_empty() && !there.iter().any(|known| known == version) {
            return Err(Status::not_found(format!("the model has version {}, not the one asked for: leave the version out", there[0])));
        }
        Ok(there)
    }

    fn check_may_change(&self) -> Result<(), Status> {
        if self.may_change {
            return Ok(());
        }
        Err(Status::permission_denied("partitions are loaded and unloaded through the admin port (admin.listen) alone: call that"))
    }
}

/// The status with the number of the sample that it is of.
fn of_sample(status: &Status, number: usize) -> Status {
    let details = status.get_error_details();
    Status::with_error_details(status.code(), super::status::clipped(format!("sample {number}: {}", status.message())), details)
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn an_error_names_its_sample_and_keeps_its_details() {
        let status = of_sample(&invalid("image", "it is none"), 3);
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "sample 3: it is none"));
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "image");
    }
}
