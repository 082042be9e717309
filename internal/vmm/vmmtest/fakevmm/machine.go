package fakevmm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
)

// machine is the VM behind the API.
type machine struct {
	id    string
	pci   bool
	log   *logger
	spec  *Spec // nil when it was not found
	guest *guest
	ended chan int // gets the exit code

	waiting atomic.Int32 // requests that are not answered yet

	mu       sync.Mutex
	state    string // "Not started", "Running", "Paused"
	raw      []byte // the configuration as it was read
	config   *config
	balloon  map[string]int
	metadata map[string]any
}

// start brings the sockets up and, where there is a configuration, the guest.
func (m *machine) start(opts map[string]string) error {
	if opts["no-api"] == "" {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: opts["api-sock"], Net: "unix"})
		if err != nil {
			return fmt.Errorf("FailedToBindSocket(%q)", opts["api-sock"])
		}
		l.SetUnlinkOnClose(false) // the real one leaves it behind
		go func() { _ = http.Serve(l, m) }()
	}
	if opts["config-file"] == "" {
		return nil
	}
	m.mu.Lock() // requests wait until the VM is built, as in the real one
	defer m.mu.Unlock()
	c, raw, err := readConfig(opts["config-file"], m.spec)
	if err != nil {
		return err
	}
	if c.Metrics != nil {
		f, err := os.OpenFile(c.Metrics.Path, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return fmt.Errorf("BuildFromJson(ParseFromJson(Metrics(%w)))", err)
		}
		_ = f.Close()
	}
	if c.Balloon != nil {
		m.balloon = map[string]int{}
		_ = json.Unmarshal(c.Balloon, &m.balloon) // booleans in it do not matter
	}
	if c.MMDS != nil {
		m.metadata = map[string]any{}
	}
	if c.Vsock != nil {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.Vsock.Path, Net: "unix"})
		if err != nil {
			return fmt.Errorf("BuildFromJson(StartMicroVM(CreateVsockBackend(UnixBind(%w))))", err)
		}
		l.SetUnlinkOnClose(false)
		go m.guest.serveVsock(l)
	}
	m.config, m.raw, m.state = c, raw, "Running"
	args := ""
	if c.Boot.Args != nil {
		args = *c.Boot.Args
	}
	go func() { m.ended <- m.guest.boot(args, c) }()
	m.log.info("Successfully started microvm that was configured from one single json")
	return nil
}

// refusal is what the API answers with status 400.
type refusal string

func (r refusal) Error() string { return string(r) }

const (
	postBoot = refusal("The requested operation is not supported after starting the microVM.")
	preBoot  = refusal("The requested operation is not supported before starting the microVM.")
	noDevice = refusal("Internal VMM error: Failed perform action on device: Device not found")
)

// ServeHTTP implements the API.
func (m *machine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.waiting.Add(1)
	defer m.waiting.Add(-1)
	body, err := io.ReadAll(io.LimitReader(r.Body, 51201))
	if err == nil && len(body) > 51200 {
		err = errors.New("the payload is too large")
	}
	m.log.info(fmt.Sprintf("The API server received a %s request on %q with body %q.", r.Method, r.URL.Path, body))
	var out any
	if err == nil {
		err = m.allowed(r.Method, r.URL.Path, body)
	}
	if err == nil {
		m.mu.Lock()
		out, err = m.handle(r.Method, r.URL.Path, body)
		m.mu.Unlock()
	}
	w.Header().Set("Content-Type", "application/json")
	switch {
	case err != nil:
		m.log.error("Received Error. Status code: 400 Bad Request. Message: " + err.Error())
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]string{"fault_message": err.Error()})
	case out != nil:
		_ = json.NewEncoder(w).Encode(out)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// allowed holds a request to the description, and to what Firecracker checks
// beyond it: a PUT or PATCH has a body, a GET has none, an id has no hyphen.
func (m *machine) allowed(method, path string, body []byte) error {
	switch {
	case method == http.MethodGet && len(body) > 0:
		return refusal("GET request cannot have a body.")
	case (method == http.MethodPut || method == http.MethodPatch) && len(body) == 0:
		return refusal("Empty " + method + " request.")
	}
	parts := strings.Split(strings.Trim(path, "/"), "/")
	if len(parts) == 2 && (parts[0] == "drives" || parts[0] == "network-interfaces") {
		if strings.ContainsFunc(parts[1], func(r rune) bool { return !strings.ContainsRune(idRunes, r) }) {
			return refusal("API Resource IDs can only contain alphanumeric characters and underscores.")
		}
	}
	if m.spec == nil {
		return nil
	}
	err := m.spec.CheckRequest(method, path, body)
	if errors.Is(err, errNoOperation) {
		return refusal(fmt.Sprintf("Invalid request method and/or path: %s %s.", method, strings.TrimPrefix(path, "/")))
	}
	if err != nil {
		return fmt.Errorf("An error occurred when deserializing the json body of a request: %w.", err) //nolint:staticcheck // Firecracker's words
	}
	return nil
}

const idRunes = "_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
