use super::*;

const WINDOW: u32 = 1 << 20;

/// A queue that no budget bounds.
fn queue() -> InputQueue {
    InputQueue::new(MemoryBudget::new(usize::MAX).share())
}

/// A client that always sends what it may, in packets of `packet` bytes, to russh's window rules.
struct Client {
    windows: Windows<u32>,
    queue: Arc<InputQueue>,
    /// russh's own count of what the client may send.
    left: u32,
    target: u32,
    trickles: usize,
}

impl Client {
    fn new() -> Self {
        let mut windows = Windows::new(WINDOW);
        let queue = Arc::new(queue());
        windows.open(1, Arc::clone(&queue));
        Self { windows, queue, left: WINDOW, target: WINDOW, trickles: 0 }
    }

    /// What russh 0.65 does with a data packet (`adjust_window_size`, then the handler).
    fn send(&mut self, packet: u32) -> u32 {
        let length = packet.min(self.left);
        self.left -= length;
        if self.left < self.target / 2 {
            let granted = self.target;
            self.left = granted;
            self.target = self.windows.regrant(&1, granted);
            self.trickles += usize::from(granted == TRICKLE);
        }
        self.windows.data(&1, length as usize).unwrap();
        self.queue.push(&vec![7; length as usize]);
        length
    }

    async fn take(&self, mut bytes: usize) {
        while bytes > 0 {
            let piece = self.queue.pop().await.unwrap();
            self.queue.written(piece.len());
            bytes = bytes.saturating_sub(piece.len());
        }
    }
}

#[test]
fn a_stuck_child_bounds_the_queue_and_the_client_still_gets_asked() {
    for packet in [1000, 32 * 1024, 65_535] {
        let mut client = Client::new();
        for _ in 0..20_000 {
            assert!(client.send(packet) > 0, "the client must never be left without any window");
        }
        assert!(client.trickles > 1000);
        let beyond = client.queue.highest().saturating_sub(2 * client.trickles);
        assert!(beyond <= QUEUE_WINDOWS * WINDOW as usize, "{beyond} queued with packets of {packet}");
        assert!(beyond >= WINDOW as usize);
    }
}

#[tokio::test]
async fn a_child_that_keeps_up_always_finds_a_full_window() {
    let mut client = Client::new();
    for _ in 0..10_000 {
        let length = client.send(32 * 1024);
        assert_eq!(length, 32 * 1024);
        client.take(length as usize).await;
    }
    assert_eq!(client.trickles, 0);
}

#[tokio::test]
async fn a_child_that_wakes_up_gets_full_windows_again() {
    let mut client = Client::new();
    while client.trickles < 100 {
        client.send(32 * 1024);
    }
    client.take(client.queue.queued()).await;
    for _ in 0..4 {
        client.send(32 * 1024);
        client.take(client.queue.queued()).await;
    }
    assert!(client.left > 128 * 1024, "{}", client.left);
    let trickles = client.trickles;
    for _ in 0..1000 {
        let length = client.send(32 * 1024);
        client.take(length as usize).await;
    }
    assert_eq!(client.trickles, trickles);
}

#[test]
fn a_client_that_ignores_its_window_is_found_out() {
    let mut windows = Windows::new(WINDOW);
    windows.open(1, Arc::new(queue()));
    assert_eq!(windows.data(&1, WINDOW as usize), Ok(()));
    assert_eq!(windows.data(&1, 1), Err(WindowExceeded));
}

#[test]
fn the_fullest_session_decides_for_all() {
    let mut windows = Windows::new(WINDOW);
    let full = Arc::new(queue());
    windows.open(1, Arc::clone(&full));
    windows.open(2, Arc::new(queue()));
    full.push(&vec![0; 2 * WINDOW as usize]);
    assert_eq!(windows.regrant(&2, WINDOW), TRICKLE);
    windows.close(&1);
    assert!(windows.regrant(&2, TRICKLE) > WINDOW / 2);
}

#[tokio::test]
async fn a_discarded_queue_takes_and_gives_nothing() {
    let queue = queue();
    queue.push(b"abc");
    queue.discard();
    queue.push(b"def");
    assert_eq!((queue.queued(), queue.highest()), (0, 3));
    assert_eq!(queue.pop().await, None);
}

#[tokio::test]
async fn the_queue_keeps_order_and_ends() {
    let queue = Arc::new(queue());
    let pushing = Arc::clone(&queue);
    let task = tokio::spawn(async move {
        for n in 0..1000_u32 {
            pushing.push(&n.to_be_bytes());
            if n % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        pushing.finish();
    });
    let mut all = Vec::new();
    while let Some(piece) = queue.pop().await {
        all.extend_from_slice(&piece);
    }
    task.await.unwrap();
    let wanted: Vec<u8> = (0..1000_u32).flat_map(u32::to_be_bytes).collect();
    assert_eq!(all, wanted);
}

#[tokio::test]
async fn an_exceeded_budget_rests_those_that_have_queued_something() {
    let budget = MemoryBudget::new(1000);
    let (stuck, idle) = (budget.share(), budget.share());
    let (gate, other) = (Gate::new(Arc::clone(&stuck)), Gate::new(Arc::clone(&idle)));
    let queue = InputQueue::new(stuck);
    let context = Context::from_waker(std::task::Waker::noop());
    let now = Instant::now();
    queue.push(&[0; 1000]);
    assert_eq!(gate.poll_open(now, &context), Poll::Ready(None));
    queue.push(&[0]);
    assert_eq!(gate.poll_open(now, &context), Poll::Ready(Some(now + BUDGET_PAUSE)));
    assert_eq!(gate.poll_open(now + BUDGET_PAUSE, &context), Poll::Ready(Some(now + 2 * BUDGET_PAUSE)));
    assert_eq!(other.poll_open(now, &context), Poll::Ready(None), "it has queued nothing");
    let piece = queue.pop().await.unwrap();
    queue.written(piece.len());
    assert_eq!(gate.poll_open(now + 2 * BUDGET_PAUSE, &context), Poll::Ready(None));
}

#[tokio::test]
async fn the_budget_comes_back() {
    let budget = MemoryBudget::new(1000);
    let queued = || budget.queued.load(Ordering::Relaxed);
    let discarded = InputQueue::new(budget.share());
    discarded.push(&[0; 300]);
    let piece = discarded.pop().await.unwrap();
    discarded.discard();
    discarded.written(piece.len());
    assert_eq!(queued(), 0);
    let dropped = InputQueue::new(budget.share());
    dropped.push(&[0; 300]);
    assert_eq!(queued(), 300);
    drop(dropped);
    assert_eq!(queued(), 0);
}
