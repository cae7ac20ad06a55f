//! A web server that shows a directory, and can be made to misbehave.
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What happens to requests below `partitions/`.
#[derive(Clone, Debug, PartialEq)]
pub enum Mode {
    Honest,
    /// Knows no ranges.
    Whole,
    /// Ends each connection after this many bytes of a body.
    Cut(usize),
    /// The right length of wrong bytes.
    Garbage,
    /// More bytes than the manifest names, and no length in the head.
    Longer,
    Redirect(String),
    /// 503, for the manifest too.
    Gone,
    /// Answers, and then sends nothing.
    Silent,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    mode: Mode,
    /// Requested paths below `partitions/`, with the first byte of the range.
    requests: Vec<(String, u64)>,
}

pub struct Web {
    pub address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Web {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Web {
    pub async fn of(root: impl Into<PathBuf>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shared = Arc::new(Mutex::new(Shared { root: root.into(), mode: Mode::Honest, requests: Vec::new() }));
        let (address, serving) = (listener.local_addr().unwrap(), shared.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, serving.clone()));
            }
        });
        Self { address, shared, task }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    pub fn set(&self, mode: Mode) {
        self.shared.lock().unwrap().mode = mode;
    }

    pub fn requests(&self) -> Vec<(String, u64)> {
        self.shared.lock().unwrap().requests.clone()
    }
}

async fn answer(mut stream: TcpStream, shared: Arc<Mutex<Shared>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 10_000 {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let path = head.split(' ').nth(1).unwrap().trim_start_matches('/').to_owned();
    let range_start = head.lines().find_map(|line| line.strip_prefix("range: bytes=")?.split_once('-')?.0.parse::<usize>().ok());
    let (mode, file) = {
        let mut shared = shared.lock().unwrap();
        let is_partition = path.contains("partitions/");
        if is_partition {
            shared.requests.push((path.clone(), range_start.unwrap_or(0) as u64));
        }
        let mode = if is_partition || shared.mode == Mode::Gone { shared.mode.clone() } else { Mode::Honest };
        (mode, std::fs::read(shared.root.join(path.split('?').next().unwrap())).ok())
    };
    let (status, fields, body) = response(&mode, file, range_start);
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{fields}\r\n");
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    let sent = if let Mode::Cut(n) = mode { body.len().min(n) } else { body.len() };
    if mode == Mode::Silent {
        // Until the client closes the connection.
        let _ = stream.read_u8().await;
        return;
    }
    let _ = stream.write_all(&body[..sent]).await;
    let _ = stream.shutdown().await;
}

fn response(mode: &Mode, file: Option<Vec<u8>>, range_start: Option<usize>) -> (&'static str, String, Vec<u8>) {
    if *mode == Mode::Gone {
        return ("503 Service Unavailable", "Content-Length: 0\r\n".to_owned(), Vec::new());
    }
    if let Mode::Redirect(to) = mode {
        return ("302 Found", format!("Location: {to}\r\nContent-Length: 0\r\n"), Vec::new());
    }
    let Some(mut file) = file else { return ("404 Not Found", "Content-Length: 0\r\n".to_owned(), Vec::new()) };
    match mode {
        Mode::Garbage => file.fill(7),
        // Without a length: until the connection ends.
        Mode::Longer => {
            file.push(0);
            return ("200 OK", String::new(), file);
        }
        _ => {}
    }
    match range_start.filter(|_| *mode != Mode::Whole) {
        Some(start) if start < file.len() => {
            let total = file.len();
            let body = file.split_off(start);
            let fields = format!("Content-Length: {}\r\nContent-Range: bytes {start}-{}/{total}\r\n", body.len(), total - 1);
            ("206 Partial Content", fields, body)
        }
        _ => ("200 OK", format!("Content-Length: {}\r\n", file.len()), file),
    }
}
