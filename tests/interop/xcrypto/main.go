// Xcrypto is an SSH client as Go programs have it, on golang.org/x/crypto/ssh; its arguments and its answer are those of
// tests/interop/python/client.py, less the library.
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

const timeout = 60 * time.Second

type result struct {
	Code    *int   `json:"code,omitempty"`
	Stdout  []byte `json:"stdout,omitempty"`
	Stderr  []byte `json:"stderr,omitempty"`
	Refused string `json:"refused,omitempty"`
	Banner  string `json:"banner"`
}

func main() {
	time.AfterFunc(timeout, func() { fail(errors.New("took too long")) })
	if len(os.Args) != 7 {
		fail(errors.New("usage: xcrypto PORT HOST_KEY USER none|key|password COMMAND ANSWER"))
	}
	input, err := io.ReadAll(os.Stdin)
	if err != nil {
		fail(err)
	}
	answer, err := strconv.Atoi(os.Args[6])
	if err != nil {
		fail(err)
	}
	outcome, err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5], input, answer)
	if err != nil {
		fail(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(outcome); err != nil {
		fail(err)
	}
}

// An output tells when it holds as many bytes as are wanted.
type output struct {
	held     bytes.Buffer
	wanted   int
	answered chan struct{}
	told     bool
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.held.Write(p)
	o.look()
	return n, err
}

func (o *output) look() {
	if !o.told && o.held.Len() >= o.wanted {
		o.told = true
		close(o.answered)
	}
}

// A waiter is a reader whose end comes when the channel is closed.
type waiter chan struct{}

func (w waiter) Read([]byte) (int, error) {
	<-w
	return 0, io.EOF
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "xcrypto:", err)
	os.Exit(1)
}

func run(port, hostKey, user, method, command string, input []byte, answer int) (*result, error) {
	wire, err := base64.StdEncoding.DecodeString(hostKey)
	if err != nil {
		return nil, err
	}
	key, err := ssh.ParsePublicKey(wire)
	if err != nil {
		return nil, err
	}
	var auth []ssh.AuthMethod // "none" is always tried first
	switch method {
	case "key":
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		signer, err := ssh.NewSignerFromKey(private)
		if err != nil {
			return nil, err
		}
		auth = append(auth, ssh.PublicKeys(signer))
	case "password":
		auth = append(auth, ssh.Password("any"))
	}
	var banner strings.Builder
	client, err := ssh.Dial("tcp", "127.0.0.1:"+port, &ssh.ClientConfig{
		User:            user,
		Auth:            auth,
		HostKeyCallback: ssh.FixedHostKey(key),
		BannerCallback:  func(message string) error { banner.WriteString(message); return nil },
		Timeout:         timeout,
	})
	refused := func(err error) (*result, error) {
		return &result{Refused: err.Error(), Banner: banner.String()}, nil
	}
	if err != nil {
		return refused(err)
	}
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		// What ended the connection is known better there.
		if ended := client.Wait(); ended != nil {
			err = ended
		}
		return refused(err)
	}
	var stderr bytes.Buffer
	stdout := &output{wanted: answer, answered: make(chan struct{})}
	stdout.look()
	session.Stdin = io.MultiReader(bytes.NewReader(input), waiter(stdout.answered))
	session.Stdout, session.Stderr = stdout, &stderr
	code := 0
	if err := session.Run(command); err != nil {
		exit := (*ssh.ExitError)(nil)
		if !errors.As(err, &exit) {
			return nil, err
		}
		code = exit.ExitStatus()
	}
	return &result{Code: &code, Stdout: stdout.held.Bytes(), Stderr: stderr.Bytes(), Banner: banner.String()}, nil
}
