package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// A full WireGuard datagram of a tunnel with an MTU of 1280.
const derpPacketLen = 1312

// A bareClient is an end that moves packets through a relay and has neither a tunnel nor TCP in them: what the relay lets through.
type bareClient struct {
	*load
	client *derphttp.Client
	quit   chan struct{}
	sender sync.WaitGroup
}

func loadOverRelay() error {
	if len(os.Args) != 3 {
		return errors.New("usage: tsnet-peer derp REGION_JSON")
	}
	var region tailcfg.DERPRegion
	if err := json.Unmarshal([]byte(os.Args[2]), &region); err != nil {
		return fmt.Errorf("no region: %w", err)
	}
	private := key.NewNode()
	quiet := func(string, ...any) {}
	client := derphttp.NewRegionClient(private, quiet, netmon.NewStatic(), func() *tailcfg.DERPRegion { return &region })
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := client.Connect(ctx); err != nil {
		return err
	}
	b := &bareClient{load: newLoad(), client: client}
	go b.receive()
	return b.takeOrdersAs(private.Public())
}

func (b *bareClient) receive() {
	for {
		message, err := b.client.Recv()
		if err != nil {
			return
		}
		if packet, ok := message.(derp.ReceivedPacket); ok {
			b.received.Add(int64(len(packet.Data)))
		}
	}
}

func (b *bareClient) takeOrdersAs(public key.NodePublic) error {
	b.dial = func(context.Context, string) (net.Conn, error) { return nil, errors.New("a relay has no streams") }
	b.direct = func(context.Context, string) (bool, error) { return false, nil }
	b.send = b.pump
	b.halt = func() {
		if b.quit != nil {
			close(b.quit)
			b.sender.Wait()
			b.quit = nil
		}
	}
	name, err := public.MarshalText()
	if err != nil {
		return err
	}
	return b.takeOrders(answer{Addresses: []string{string(name)}})
}

// pump sends packets to a key as fast as the relay takes them.
func (b *bareClient) pump(to string) error {
	var peer key.NodePublic
	if err := peer.UnmarshalText([]byte(to)); err != nil {
		return err
	}
	quit := make(chan struct{})
	b.quit = quit
	b.sender.Go(func() {
		packet := make([]byte, derpPacketLen)
		for {
			select {
			case <-quit:
				return
			default:
			}
			if err := b.client.Send(peer, packet); err != nil {
				return
			}
		}
	})
	return nil
}
