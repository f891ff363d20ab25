//! Two byte streams joined: what an upgraded connection becomes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::time::{Instant, sleep};

const CHUNK: usize = 16 << 10;

/// Copies both ways until both have ended, or nothing has moved either way for `idle`. An end on one side is passed on
/// while the other goes on.
pub async fn join<A, B>(a: A, b: B, idle: Duration) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let began = Instant::now();
    let last = Arc::new(AtomicU64::new(0));
    let ((a_in, a_out), (b_in, b_out)) = (split(a), split(b));
    let copying = async { tokio::try_join!(copy(a_in, b_out, &last, began), copy(b_in, a_out, &last, began)).map(|_| ()) };
    let watching = async {
        loop {
            let silent = began.elapsed().saturating_sub(Duration::from_millis(last.load(Ordering::Relaxed)));
            match idle.checked_sub(silent) {
                Some(left) if !left.is_zero() => sleep(left).await,
                _ => return,
            }
        }
    };
    tokio::select! {
        biased;
        done = copying => done,
        () = watching => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn copy<R: AsyncRead, W: AsyncWrite>(
    mut from: ReadHalf<R>,
    mut to: WriteHalf<W>,
    last: &AtomicU64,
    began: Instant,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = from.read(&mut buffer).await?;
        last.store(began.elapsed().as_millis() as u64, Ordering::Relaxed);
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
    }
}
