//! Failover and drills, jobs, machines, and how they are to look.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use bytes::Bytes;
use lifeboat_api::{
    ChangePoint, CleanUp, Console, ErrorBody, Failover, Hydrate, Job, LocalFormat, Machine, PlannedFailover,
    Readiness, SshKey, StopMachine, Target, TargetSettings, TestFailover,
};
use lifeboat_compute::{ComputeError, DiskFormat};
use lifeboat_transport::{ApiError, OperatorPeer, StatusCode};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{VaultService, wait};
use crate::error::VaultError;
use crate::jobs::{Conflict, JobError, JobRequest};

const JOBS_DEFAULT: u32 = 50;
const JOBS_MAX: u32 = 1000;
/// Bytes of a point's name, and of a note.
const TEXT_MAX: usize = 2000;
/// Bytes that are typed on a console at once.
const CONSOLE_INPUT_MAX: usize = 64 << 10;

pub(super) fn routes() -> OpenApiRouter<VaultService> {
    OpenApiRouter::new()
        .routes(routes!(test_failover))
        .routes(routes!(clean_up))
        .routes(routes!(failover))
        .routes(routes!(planned_failover))
        .routes(routes!(change_point))
        .routes(routes!(commit))
        .routes(routes!(hydrate))
        .routes(routes!(jobs))
        .routes(routes!(job))
        .routes(routes!(cancel))
        .routes(routes!(retry))
        .routes(routes!(machines))
        .routes(routes!(machine))
        .routes(routes!(start_machine))
        .routes(routes!(stop_machine))
        .routes(routes!(console, write_console))
        .routes(routes!(screenshot))
        .routes(routes!(target, set_target))
        .routes(routes!(ssh_key))
        .routes(routes!(readiness))
}

/// Starts a drill: a copy in a network of its own, while replication goes on.
#[utoipa::path(
    post, path = "/v1/servers/{server}/failover/test", params(("server" = String, Path)),
    request_body = TestFailover, responses((status = 202, body = Job), (status = "default", body = ErrorBody))
)]
async fn test_failover(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
    Json(body): Json<TestFailover>,
) -> Result<(StatusCode, Json<Job>), ApiError> {
    let point = body.point.unwrap_or_else(|| "latest".to_owned());
    begin(&service, &server, JobRequest::Drill { point, keep: body.keep, network: body.network }).await
}

/// Ends a drill: its copy is removed.
#[utoipa::path(
    post, path = "/v1/servers/{server}/failover/cleanup", params(("server" = String, Path)),
    request_body = CleanUp, responses((status = 202, body = Job), (status = "default", body = ErrorBody))
)]
async fn clean_up(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
    Json(body): Json<CleanUp>,
) -> Result<(StatusCode, Json<Job>), ApiError> {
    begin(&service, &server, JobRequest::CleanUp { note: body.note }).await
}

/// Starts the copy that takes over. The source is fenced from then on.
#[utoipa::path(
    post, path = "/v1/servers/{server}/failover", params(("server" = String, Path)), request_body = Failover,
    responses((status = 202, body = Job), (status = "default", body = ErrorBody))
)]
async fn failover(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
    Json(body): Json<Failover>,
) -> Result<(StatusCode, Json<Job>), ApiError> {
    begin(&service, &server, JobRequest::Failover { point: body.point, network: body.network }).await
}

/// Has the source stop its services and send its last write, and then starts the copy.
#[utoipa::path(
    post, path = "/v1/servers/{server}/failover/planned", params(("server" = String, Path)),
    request_body = Option<PlannedFailover>,
    responses((status = 202, body = Job), (status = "default", body = ErrorBody))
)]
async fn planned_failover(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
    body: Option<Json<PlannedFailover>>,
) -> Result<(StatusCode, Json<Job>), ApiError> {
    let network = body.and_then(|Json(body)| body.network);
    begin(&service, &server, JobRequest::PlannedFailover { network }).await
}

/// Starts the copy that took over anew, from another point. What it has written is gone then.
#[utoipa::path(
    post, path = "/v1/servers/{server}/failover/change-point", params(("server" = String, Path)),
    request_body = ChangePoint, responses((status = 202, body = Job), (status = "default", body = ErrorBody))
)]
async fn change_point(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
    Json(body): Json<ChangePoint>,
) -> Result<(StatusCode, Json<Job>), ApiError> {
    begin(&service, &server, JobRequest::ChangePoint { point: body.point }).await
}

/// Makes a failover final: the point cannot be changed any more.
#[utoipa::path(
    post, path = "/v1/servers/{server}/failover/commit", params(("server" = String, Path)),
    responses((status = 202, body = Job), (status = "default", body = ErrorBody))
)]
async fn commit(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
) -> Result<(StatusCode, Json<Job>), ApiError> {
    begin(&service, &server, JobRequest::Commit).await
}

/// Copies the disks of a machine that took over to the recovery site's storage, while it runs.
#[utoipa::path(
    post, path = "/v1/servers/{server}/machine/hydrate", params(("server" = String, Path)),
    request_body = Hydrate, responses((status = 202, body = Job), (status = "default", body = ErrorBody))
)]
async fn hydrate(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
    Json(body): Json<Hydrate>,
) -> Result<(StatusCode, Json<Job>), ApiError> {
    let format = match body.format {
        LocalFormat::Raw => DiskFormat::Raw,
        LocalFormat::Qcow2 => DiskFormat::Qcow2,
    };
    begin(&service, &server, JobRequest::Hydrate { format, bytes_per_second: body.bytes_per_second }).await
}

async fn begin(
    service: &VaultService,
    server: &str,
    request: JobRequest,
) -> Result<(StatusCode, Json<Job>), ApiError> {
    let note = match &request {
        JobRequest::CleanUp { note } => note.as_deref(),
        _ => None,
    };
    if request.named_point().into_iter().chain(note).any(|text| text.len() > TEXT_MAX) {
        return Err(VaultError::Invalid(format!("a point or a note has at most {TEXT_MAX} bytes")).into());
    }
    let server = service.vault.find_server(server).await?;
    let job = service.jobs.begin(server, request).await?;
    Ok((StatusCode::ACCEPTED, Json(service.jobs.view(job).await?)))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct JobFilter {
    /// Of this server alone.
    server: Option<String>,
    /// At most so many, the newest; 50 when absent.
    limit: Option<u32>,
}

/// Jobs, newest first.
#[utoipa::path(
    get, path = "/v1/jobs", params(JobFilter),
    responses((status = 200, body = Vec<Job>), (status = "default", body = ErrorBody))
)]
async fn jobs(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Query(filter): Query<JobFilter>,
) -> Result<Json<Vec<Job>>, ApiError> {
    let server = match filter.server {
        Some(server) => Some(service.vault.find_server(&server).await?),
        None => None,
    };
    let limit = filter.limit.unwrap_or(JOBS_DEFAULT).min(JOBS_MAX);
    Ok(Json(service.jobs.list(server, limit).await?))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Wait {
    /// Wait so many milliseconds for its end, at most 25,000.
    wait_ms: Option<u64>,
}

/// One job. `{job}` is everywhere an id or a unique beginning of one.
#[utoipa::path(
    get, path = "/v1/jobs/{job}", params(("job" = String, Path), Wait),
    responses((status = 200, body = Job), (status = "default", body = ErrorBody))
)]
async fn job(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(job): Path<String>,
    Query(query): Query<Wait>,
) -> Result<Json<Job>, ApiError> {
    let job = service.jobs.find_job(&job).await?;
    Ok(Json(service.jobs.job_within(job, wait(query.wait_ms)).await?))
}

/// Ends a job and removes what it has made.
#[utoipa::path(
    post, path = "/v1/jobs/{job}/cancel", params(("job" = String, Path)),
    responses((status = 202, body = Job), (status = "default", body = ErrorBody))
)]
async fn cancel(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(job): Path<String>,
) -> Result<(StatusCode, Json<Job>), ApiError> {
    let job = service.jobs.find_job(&job).await?;
    let row = service.jobs.cancel(job).await?;
    Ok((StatusCode::ACCEPTED, Json(service.jobs.view(row).await?)))
}

/// Goes on with a job that failed, from the step that failed.
#[utoipa::path(
    post, path = "/v1/jobs/{job}/retry", params(("job" = String, Path)),
    responses((status = 202, body = Job), (status = "default", body = ErrorBody))
)]
async fn retry(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(job): Path<String>,
) -> Result<(StatusCode, Json<Job>), ApiError> {
    let job = service.jobs.find_job(&job).await?;
    let row = service.jobs.retry(job).await?;
    Ok((StatusCode::ACCEPTED, Json(service.jobs.view(row).await?)))
}

/// Every server's machine at the recovery site, the oldest first.
#[utoipa::path(
    get, path = "/v1/machines",
    responses((status = 200, body = Vec<Machine>), (status = "default", body = ErrorBody))
)]
async fn machines(
    State(service): State<VaultService>,
    _: OperatorPeer,
) -> Result<Json<Vec<Machine>>, ApiError> {
    Ok(Json(service.jobs.machines().await?))
}

/// A server's machine at the recovery site.
#[utoipa::path(
    get, path = "/v1/servers/{server}/machine", params(("server" = String, Path)),
    responses((status = 200, body = Machine), (status = "default", body = ErrorBody))
)]
async fn machine(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
) -> Result<Json<Machine>, ApiError> {
    let server = service.vault.find_server(&server).await?;
    Ok(Json(service.jobs.machine(server).await?))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct From {
    /// The offset in bytes to begin at; 0 when absent.
    from: Option<u64>,
}

/// Starts a server's machine that is off, with its disks as it left them. Fine when it runs.
#[utoipa::path(
    post, path = "/v1/servers/{server}/machine/start", params(("server" = String, Path)),
    responses((status = 200, body = Machine), (status = "default", body = ErrorBody))
)]
async fn start_machine(
    State(service): State<VaultService>,
    OperatorPeer(operator): OperatorPeer,
    Path(server): Path<String>,
) -> Result<Json<Machine>, ApiError> {
    let server = service.vault.find_server(&server).await?;
    Ok(Json(service.jobs.start_again(server, &operator).await?))
}

/// Stops a server's machine until it is started again, and does not wait for its guest. Fine when it is off.
#[utoipa::path(
    post, path = "/v1/servers/{server}/machine/stop", params(("server" = String, Path)),
    request_body = StopMachine,
    responses((status = 200, body = Machine), (status = "default", body = ErrorBody))
)]
async fn stop_machine(
    State(service): State<VaultService>,
    OperatorPeer(operator): OperatorPeer,
    Path(server): Path<String>,
    Json(body): Json<StopMachine>,
) -> Result<Json<Machine>, ApiError> {
    let server = service.vault.find_server(&server).await?;
    Ok(Json(service.jobs.stop_machine(server, body.force, &operator).await?))
}

/// What a server's machine has written to its serial console.
#[utoipa::path(
    get, path = "/v1/servers/{server}/machine/console", params(("server" = String, Path), From),
    responses((status = 200, body = Console), (status = "default", body = ErrorBody))
)]
async fn console(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
    Query(query): Query<From>,
) -> Result<Json<Console>, ApiError> {
    let server = service.vault.find_server(&server).await?;
    Ok(Json(service.jobs.console(server, query.from.unwrap_or(0)).await?))
}

/// Types on the serial console of a server's machine, at most 65,536 bytes; answers when its guest has read them.
#[utoipa::path(
    post, path = "/v1/servers/{server}/machine/console", params(("server" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204), (status = "default", body = ErrorBody))
)]
async fn write_console(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
    input: Bytes,
) -> Result<StatusCode, ApiError> {
    if input.len() > CONSOLE_INPUT_MAX {
        let why = format!("at most {CONSOLE_INPUT_MAX} bytes are typed on a console at once");
        return Err(VaultError::Invalid(why).into());
    }
    let server = service.vault.find_server(&server).await?;
    service.jobs.write_console(server, &input).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The screen of a server's machine.
#[utoipa::path(
    get, path = "/v1/servers/{server}/machine/screenshot", params(("server" = String, Path)),
    responses(
        (status = 200, body = Vec<u8>, content_type = "image/png"), (status = "default", body = ErrorBody)
    )
)]
async fn screenshot(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let server = service.vault.find_server(&server).await?;
    Ok(([(CONTENT_TYPE, "image/png")], service.jobs.screenshot(server).await?))
}

/// How a server's machine is to look: what was set, and the rest as its facts suggest.
#[utoipa::path(
    get, path = "/v1/servers/{server}/target", params(("server" = String, Path)),
    responses((status = 200, body = Target), (status = "default", body = ErrorBody))
)]
async fn target(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
) -> Result<Json<Target>, ApiError> {
    let server = service.vault.find_server(&server).await?;
    Ok(Json(service.jobs.target_of(server).await?))
}

/// Sets how a server's machine is to look the next time it is started; what is absent comes from its facts.
#[utoipa::path(
    put, path = "/v1/servers/{server}/target", params(("server" = String, Path)),
    request_body = TargetSettings,
    responses((status = 200, body = Target), (status = "default", body = ErrorBody))
)]
async fn set_target(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
    Json(target): Json<TargetSettings>,
) -> Result<Json<Target>, ApiError> {
    let server = service.vault.find_server(&server).await?;
    service.jobs.set_target(server, &target).await?;
    Ok(Json(service.jobs.target_of(server).await?))
}

/// The key with which the vault logs in to servers' machines, to run commands that show whether they are up.
#[utoipa::path(
    get, path = "/v1/ssh-key",
    responses((status = 200, body = SshKey), (status = "default", body = ErrorBody))
)]
async fn ssh_key(State(service): State<VaultService>, _: OperatorPeer) -> Result<Json<SshKey>, ApiError> {
    Ok(Json(service.jobs.ssh_key().await?))
}

/// Whether a server would start at the recovery site, and what to change while it still runs.
#[utoipa::path(
    get, path = "/v1/servers/{server}/readiness", params(("server" = String, Path)),
    responses((status = 200, body = Readiness), (status = "default", body = ErrorBody))
)]
async fn readiness(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
) -> Result<Json<Readiness>, ApiError> {
    let server = service.vault.find_server(&server).await?;
    Ok(Json(service.jobs.readiness(server).await?))
}

impl std::convert::From<JobError> for ApiError {
    fn from(error: JobError) -> Self {
        match error {
            JobError::Vault(error) => error.into(),
            JobError::Volumes(error) => error.into(),
            JobError::Conflict(conflict) => {
                let status = match conflict {
                    Conflict::LatestOfChange => StatusCode::BAD_REQUEST,
                    _ => StatusCode::CONFLICT,
                };
                Self::new(status, conflict.code(), conflict.to_string())
            }
            JobError::Compute(error) => compute_error(&error),
            error @ JobError::Ssh(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "ssh_key", error.to_string())
            }
            JobError::Memory { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "compute_failed", error.to_string())
            }
            error @ (JobError::NotUp(_)
            | JobError::Source(_)
            | JobError::NotCopied(_)
            | JobError::Interrupted
            | JobError::MadeToFail) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "job_failed", error.to_string())
            }
        }
    }
}

fn compute_error(error: &ComputeError) -> ApiError {
    let (status, code) = match error {
        ComputeError::NotSupported { .. } => (StatusCode::CONFLICT, "not_supported"),
        ComputeError::ConsoleNotRead { .. } => (StatusCode::CONFLICT, "console_not_read"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "compute_failed"),
    };
    ApiError::new(status, code, error.to_string())
}
