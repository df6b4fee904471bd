package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/tsnet"
)

// Contact echoes what comes to a port of the tailnet, and for each line "dial ADDRESS" of stdin waits until that peer is in the
// netmap, dials the same port of it, sends a byte and waits for the first one back. It says "listening" when it can be dialled,
// and "answered" after each line.
func contact(server *tsnet.Server, client *local.Client, port string) error {
	listener, err := server.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()
	say(step{Step: "listening"})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		address, ok := strings.CutPrefix(lines.Text(), "dial ")
		if !ok {
			return fmt.Errorf("no such command: %q", lines.Text())
		}
		answered, err := dial(server, client, address, port)
		if err != nil {
			return err
		}
		say(answered)
	}
	return lines.Err()
}

func dial(server *tsnet.Server, client *local.Client, address, port string) (step, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	wanted, err := netip.ParseAddr(address)
	if err != nil {
		return step{}, err
	}
	asked := time.Now()
	for known := false; !known; {
		status, err := client.Status(ctx)
		if err != nil {
			return step{}, err
		}
		for _, peer := range status.Peer {
			for _, ip := range peer.TailscaleIPs {
				known = known || ip == wanted
			}
		}
		if !known {
			time.Sleep(glance)
		}
	}
	seen := time.Now()
	conn, err := server.Dial(ctx, "tcp", net.JoinHostPort(address, port))
	if err != nil {
		return step{}, err
	}
	defer conn.Close()
	connected := time.Now()
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		return step{}, err
	}
	if n, err := conn.Read(make([]byte, 1)); n != 1 {
		return step{}, errors.Join(errors.New("no byte came back"), err)
	}
	answered := time.Now()
	return step{
		Step:      "answered",
		Seen:      seen.Sub(asked).Microseconds(),
		Connected: connected.Sub(seen).Microseconds(),
		Answered:  answered.Sub(seen).Microseconds(),
	}, nil
}
