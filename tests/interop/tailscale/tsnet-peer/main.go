// Tsnet-peer joins a tailnet with Tailscale's own library and says how far it got: one JSON line on stdout for each step
// ("online", "home"), with the milliseconds since its start, or one with the error that it ended with. Credentials come from
// the environment, by tsnet's own rules. It leaves when its stdin ends. With a port it also takes part in first contacts, see
// contact.go; as "bench" it is an end of nixtail-bench compare, see load.go, and as "derp" a bare client of a relay, see derp.go.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"time"

	_ "tailscale.com/feature/identityfederation"
	_ "tailscale.com/feature/oauthkey"
	"tailscale.com/tsnet"
)

const (
	patience = 60 * time.Second
	glance   = 5 * time.Millisecond
)

// A step is how far it got.
type step struct {
	Step      string   `json:"step"`
	Millis    int64    `json:"ms"`
	Addresses []string `json:"addresses,omitempty"`
	Tags      []string `json:"tags,omitempty"`
	Region    string   `json:"region,omitempty"`
	Error     string   `json:"error,omitempty"`
	// Microseconds of a first contact: until the peer was in the netmap, from there to a connection, to the first byte back.
	Seen      int64 `json:"seen_us,omitempty"`
	Connected int64 `json:"connected_us,omitempty"`
	Answered  int64 `json:"answered_us,omitempty"`
}

var started = time.Now()

func main() {
	run := takeSteps
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "bench":
			run = loadOverTailnet
		case "derp":
			run = loadOverRelay
		}
	}
	if err := run(); err != nil {
		say(step{Step: "error", Error: err.Error()})
		os.Exit(1)
	}
}

func say(s step) {
	s.Millis = time.Since(started).Milliseconds()
	if err := json.NewEncoder(os.Stdout).Encode(s); err != nil {
		log.Fatal(err)
	}
}

// newServer makes a node that keeps its state in that folder.
func newServer(folder, control, hostname, tags string) *tsnet.Server {
	return &tsnet.Server{
		ControlURL:    control,
		Hostname:      hostname,
		AdvertiseTags: strings.FieldsFunc(tags, func(r rune) bool { return r == ',' }),
		Dir:           folder,
		Logf:          func(string, ...any) {},
		UserLogf:      func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) },
	}
}

func takeSteps() error {
	if len(os.Args) != 4 && len(os.Args) != 5 {
		return errors.New("usage: tsnet-peer CONTROL_URL HOSTNAME TAGS [PORT]")
	}
	folder, err := os.MkdirTemp("", "tsnet-peer")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	server := newServer(folder, os.Args[1], os.Args[2], os.Args[3])
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	status, err := server.Up(ctx)
	if err != nil {
		// No Close: that of a server that never started panics.
		return err
	}
	defer server.Close()
	online := step{Step: "online"}
	for _, address := range status.TailscaleIPs {
		online.Addresses = append(online.Addresses, address.String())
	}
	if status.Self.Tags != nil {
		online.Tags = status.Self.Tags.AsSlice()
	}
	say(online)
	client, err := server.LocalClient()
	if err != nil {
		return err
	}
	for status.Self.Relay == "" {
		time.Sleep(glance)
		if status, err = client.StatusWithoutPeers(ctx); err != nil {
			return fmt.Errorf("no home relay: %w", err)
		}
	}
	say(step{Step: "home", Region: status.Self.Relay})
	if len(os.Args) == 5 {
		err = contact(server, client, os.Args[4])
	} else {
		_, err = io.Copy(io.Discard, os.Stdin)
	}
	if err != nil {
		return err
	}
	leaving, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return client.Logout(leaving)
}
