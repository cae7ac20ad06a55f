//! Classifies one sample:
//!
//!     cargo run -p delo-client --example classify -- --text "slice of pizza" --image photo.jpg --top-k 2
//!     DELO_TOKEN=… cargo run -p delo-client --example classify -- --server https://localhost:50051 --ca ca.pem --text pizza
use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use delo_client::{Client, Sample};

/// Classifies one sample.
#[derive(Parser)]
struct Arguments {
    /// The server's address.
    #[arg(long, default_value = "http://127.0.0.1:50051")]
    server: String,
    /// Certificates in PEM of those who sign the server's certificate.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The token by which the server knows this client.
    #[arg(long, env = "DELO_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// An image: JPEG, PNG, WebP, GIF or BMP.
    #[arg(long, value_name = "FILE", required_unless_present = "text")]
    image: Option<PathBuf>,
    /// A text.
    #[arg(long)]
    text: Option<String>,
    /// How many scores to print; 0: all.
    #[arg(long, default_value_t = 5)]
    top_k: u32,
    /// Seconds that the call may take, all attempts included.
    #[arg(long, default_value_t = 30.0)]
    timeout: f64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let mut builder = Client::builder(&arguments.server).timeout(Duration::try_from_secs_f64(arguments.timeout)?);
    if let Some(ca) = &arguments.ca {
        builder = builder.ca_certificate(std::fs::read(ca)?);
    }
    if let Some(token) = arguments.token {
        builder = builder.token(token);
    }
    let client = builder.connect().await?;

    let sample = match (arguments.image, arguments.text) {
        (Some(image), Some(text)) => Sample::image_file(image).await?.with_text(text),
        (Some(image), None) => Sample::image_file(image).await?,
        (None, text) => Sample::text(text.unwrap_or_default()),
    };
    let response = client.classify(sample.top_k(arguments.top_k).timings()).response().await?;

    let answer = response.answer();
    println!("task {} (version {})", answer.task.as_deref().unwrap_or("none: rejected"), answer.version);
    if let Some(probability) = answer.probability() {
        println!("probability {probability:.3}");
    }
    for score in &answer.scores {
        println!("{:.4} {}", score.score, score.label);
    }
    for (step, time) in response.server_timing() {
        println!("{step} {time:.1?}");
    }
    Ok(())
}
