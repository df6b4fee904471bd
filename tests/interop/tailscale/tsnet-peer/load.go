package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/tailcfg"
)

// What nixtail-bench compare lets its ends say to each other; bench/src/compare/load/protocol.rs is the other half of it. A
// connection begins with a frame: the magic, what the dialler wants, and how long a source's writes are to be.
const (
	magic      = "nxb1"
	wantSink   = 1
	wantSource = 2
	wantEcho   = 3
	frameLen   = 9
	chunkLen   = 64 << 10
	// The longest write that a source can be asked for.
	maxChunk = 1 << 20
)

// An order is a line of stdin.
type order struct {
	Order   string `json:"order"`
	To      string `json:"to"`
	Streams int    `json:"streams"`
	Bytes   int    `json:"bytes"`
	Depth   int    `json:"depth"`
	PauseUs int64  `json:"pause_us"`
	Millis  int64  `json:"millis"`
	Times   int    `json:"times"`
}

// An answer is the line of stdout that follows it.
type answer struct {
	Error     string   `json:"error,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
	Port      uint16   `json:"port"`
	Received  int64    `json:"received"`
	AtUs      int64    `json:"at_us"`
	Count     int64    `json:"count"`
	Seconds   float64  `json:"seconds"`
	P50Us     float64  `json:"p50_us"`
	P99Us     float64  `json:"p99_us"`
	Direct    bool     `json:"direct"`
}

// A load is one end of a measurement.
type load struct {
	dial   func(ctx context.Context, to string) (net.Conn, error)
	direct func(ctx context.Context, to string) (bool, error)
	// Where there are no streams: how to send all the same, and how to end that.
	send     func(to string) error
	halt     func()
	received atomic.Int64
	mu       sync.Mutex
	// What stop ends, and what it waits for.
	conns map[net.Conn]struct{}
	tasks sync.WaitGroup
}

func loadOverTailnet() error {
	if len(os.Args) != 5 {
		return errors.New("usage: tsnet-peer bench CONTROL_URL HOSTNAME PORT")
	}
	folder, err := os.MkdirTemp("", "tsnet-peer")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	server := newServer(folder, os.Args[2], os.Args[3], "")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	status, err := server.Up(ctx)
	if err != nil {
		return err
	}
	defer server.Close()
	client, err := server.LocalClient()
	if err != nil {
		return err
	}
	listener, err := server.Listen("tcp", ":"+os.Args[4])
	if err != nil {
		return err
	}
	defer listener.Close()
	l := newLoad()
	l.dial = func(ctx context.Context, to string) (net.Conn, error) { return server.Dial(ctx, "tcp", to) }
	l.direct = func(ctx context.Context, to string) (bool, error) { return isDirect(ctx, client, to) }
	go l.accept(listener)
	ready := answer{}
	for _, address := range status.TailscaleIPs {
		ready.Addresses = append(ready.Addresses, address.String())
	}
	if _, err := fmt.Sscan(os.Args[4], &ready.Port); err != nil {
		return err
	}
	if err := l.takeOrders(ready); err != nil {
		return err
	}
	return leave(client)
}

func leave(client *local.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return client.Logout(ctx)
}

func isDirect(ctx context.Context, client *local.Client, to string) (bool, error) {
	address, err := netip.ParseAddr(to)
	if err != nil {
		return false, err
	}
	pong, err := client.Ping(ctx, address, tailcfg.PingDisco)
	if err != nil {
		return false, err
	}
	if pong.Err != "" {
		return false, errors.New(pong.Err)
	}
	return pong.Endpoint != "", nil
}

func newLoad() *load { return &load{conns: map[net.Conn]struct{}{}} }

// takeOrders says that it is ready, and then answers each line of stdin by one of stdout.
func (l *load) takeOrders(ready answer) error {
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(ready); err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var o order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return fmt.Errorf("no order: %q: %w", lines.Text(), err)
		}
		a, err := l.obey(o)
		if err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
	return lines.Err()
}

func (l *load) obey(o order) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	switch o.Order {
	case "send":
		if l.send != nil {
			return answer{}, l.send(o.To)
		}
		return answer{}, l.start(ctx, o, wantSink, l.pour)
	case "receive":
		return answer{}, l.start(ctx, o, wantSource, func(conn net.Conn, _ int) { l.drain(conn) })
	case "stop":
		l.stop()
		return answer{}, nil
	case "count":
		return answer{Received: l.received.Load(), AtUs: time.Since(started).Microseconds()}, nil
	case "echo":
		return l.ask(ctx, o)
	case "connect":
		return l.connect(ctx, o)
	case "path":
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		direct, err := l.direct(short, o.To)
		return answer{Direct: direct}, err
	}
	return answer{}, fmt.Errorf("no such order: %q", o.Order)
}

// start opens streams that go on until they are stopped.
func (l *load) start(ctx context.Context, o order, want byte, run func(net.Conn, int)) error {
	for range o.Streams {
		conn, err := l.open(ctx, o.To, want)
		if err != nil {
			return err
		}
		l.hold(conn, func() { run(conn, chunkLen) })
	}
	return nil
}

func (l *load) open(ctx context.Context, to string, want byte) (net.Conn, error) {
	conn, err := l.dial(ctx, to)
	if err != nil {
		return nil, err
	}
	frame := append([]byte(magic), want)
	if _, err := conn.Write(binary.LittleEndian.AppendUint32(frame, chunkLen)); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// hold runs something with a connection that stop ends.
func (l *load) hold(conn net.Conn, run func()) {
	l.mu.Lock()
	l.conns[conn] = struct{}{}
	l.mu.Unlock()
	l.tasks.Go(func() {
		run()
		conn.Close()
		l.mu.Lock()
		delete(l.conns, conn)
		l.mu.Unlock()
	})
}

func (l *load) stop() {
	if l.halt != nil {
		l.halt()
	}
	l.mu.Lock()
	for conn := range l.conns {
		conn.Close()
	}
	l.mu.Unlock()
	l.tasks.Wait()
}

func (l *load) accept(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		l.hold(conn, func() { l.serve(conn) })
	}
}

func (l *load) serve(conn net.Conn) {
	var frame [frameLen]byte
	if _, err := io.ReadFull(conn, frame[:]); err != nil || string(frame[:4]) != magic {
		return
	}
	chunk := min(int(binary.LittleEndian.Uint32(frame[5:])), maxChunk)
	switch frame[4] {
	case wantSink:
		l.drain(conn)
	case wantSource:
		l.pour(conn, chunk)
	case wantEcho:
		// Not io.Copy, which would hand over to the stack's own loops where it can.
		buffer := make([]byte, chunkLen)
		for {
			n, err := conn.Read(buffer)
			if err != nil {
				return
			}
			if _, err := conn.Write(buffer[:n]); err != nil {
				return
			}
		}
	}
}

func (l *load) pour(conn net.Conn, chunk int) {
	buffer := make([]byte, max(chunk, 1))
	for {
		if _, err := conn.Write(buffer); err != nil {
			return
		}
	}
}

func (l *load) drain(conn net.Conn) {
	buffer := make([]byte, chunkLen)
	for {
		n, err := conn.Read(buffer)
		l.received.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// ask sends requests and waits for their answers: one at a time, with a pause between them, or as many at once as asked for.
func (l *load) ask(ctx context.Context, o order) (answer, error) {
	conn, err := l.open(ctx, o.To, wantEcho)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	wanted := time.Duration(o.Millis) * time.Millisecond
	if err := conn.SetDeadline(time.Now().Add(wanted + patience)); err != nil {
		return answer{}, err
	}
	message, begun := make([]byte, o.Bytes), time.Now()
	var took []float64
	if o.Depth > 1 {
		count, err := pipeline(conn, o, begun.Add(wanted))
		return answer{Count: count, Seconds: time.Since(begun).Seconds()}, err
	}
	for time.Since(begun) < wanted {
		sent := time.Now()
		if _, err := conn.Write(message); err != nil {
			return answer{}, err
		}
		if _, err := io.ReadFull(conn, message); err != nil {
			return answer{}, err
		}
		took = append(took, float64(time.Since(sent).Nanoseconds())/1e3)
		if o.PauseUs > 0 {
			time.Sleep(time.Duration(o.PauseUs) * time.Microsecond)
		}
	}
	a := quantiles(took)
	a.Seconds = time.Since(begun).Seconds()
	return a, nil
}

func pipeline(conn net.Conn, o order, until time.Time) (int64, error) {
	messages := make([]byte, o.Depth*o.Bytes)
	if _, err := conn.Write(messages); err != nil {
		return 0, err
	}
	var count int64
	part := 0
	for time.Now().Before(until) {
		n, err := conn.Read(messages)
		if err != nil {
			return count, err
		}
		whole := (part + n) / o.Bytes
		part = (part + n) % o.Bytes
		count += int64(whole)
		if whole == 0 {
			continue
		}
		if _, err := conn.Write(messages[:whole*o.Bytes]); err != nil {
			return count, err
		}
	}
	return count, nil
}

// connect dials anew each time, and waits for the first byte back.
func (l *load) connect(ctx context.Context, o order) (answer, error) {
	var took []float64
	for range o.Times {
		begun := time.Now()
		if err := l.greet(ctx, o.To); err != nil {
			return answer{}, err
		}
		took = append(took, float64(time.Since(begun).Nanoseconds())/1e3)
	}
	return quantiles(took), nil
}

func (l *load) greet(ctx context.Context, to string) error {
	conn, err := l.open(ctx, to, wantEcho)
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	if _, err := conn.Write([]byte{0}); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}

// quantiles goes by nearest rank: each figure is one that was measured.
func quantiles(values []float64) answer {
	if len(values) == 0 {
		return answer{}
	}
	slices.Sort(values)
	rank := func(percent int) float64 { return values[max((len(values)*percent+99)/100-1, 0)] }
	return answer{Count: int64(len(values)), P50Us: rank(50), P99Us: rank(99)}
}
