package fakevmm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// machine is the VM behind the API.
type machine struct {
	id    string
	home  string // directory of the program
	pci   bool
	log   *logger
	spec  *Spec // nil when it was not found
	guest *guest
	ended chan int // gets the exit code

	waiting atomic.Int32 // requests that are not answered yet
	server  http.Server

	mu       sync.Mutex
	state    string  // "Not started", "Running", "Paused"
	config   *config // nil before the VM is there
	balloon  int     // the target, in MiB
	store    any     // of the metadata service
	metrics  io.Writer
	flushes  int
	taps     []net.Listener // stand for the devices that are open
	realtime bool           // snapshots have the time

	// The addresses of a device that was unplugged are not used again, but the guest
	// takes them to be free: it looks there for what is plugged in later.
	unplugged bool
	astray    []string // drives that the guest does not find
}

// NoClockArg on the kernel's command line makes a host whose snapshots do not have
// the time, as KVM's do not where its clock is not that of the host's TSC.
const NoClockArg = "fakevmm.noclock"

// start brings the sockets up and, where there is a configuration, the guest.
func (m *machine) start(opts map[string]string) error {
	if path := opts["metrics-path"]; path != "" {
		if err := m.openMetrics(path); err != nil {
			return fmt.Errorf("MetricsInitialization(InitializationFailure(%w))", err)
		}
	}
	if path := opts["metadata"]; path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("Unable to open or read from the mmds content file: %w", err) //nolint:staticcheck // Firecracker's words
		}
		if err := m.putMetadata(data); err != nil {
			return fmt.Errorf("BuildFromJson(ParseFromJson(Mmds(%w)))", err)
		}
	}
	m.mu.Lock() // requests wait until the VM is built, as in the real one
	defer m.mu.Unlock()
	if opts["no-api"] == "" {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: opts["api-sock"], Net: "unix"})
		if err != nil {
			return fmt.Errorf("FailedToBindSocket(%q)", opts["api-sock"])
		}
		l.SetUnlinkOnClose(false) // the real one leaves it behind
		m.server.Handler = m
		go func() { _ = m.server.Serve(l) }()
	}
	if opts["config-file"] == "" {
		return nil
	}
	c, err := readConfig(opts["config-file"], m.spec)
	if err != nil {
		return err
	}
	if c.Metrics != nil {
		if err := m.openMetrics(c.Metrics.Path); err != nil {
			return fmt.Errorf("BuildFromJson(ParseFromJson(Metrics(%w)))", err)
		}
	}
	return m.boot(c)
}

func (m *machine) boot(c *config) error {
	for _, n := range c.NICs {
		if err := m.openTap(n.Tap); err != nil {
			return fmt.Errorf("BuildFromJson(ParseFromJson(NetDevice(%w)))", err)
		}
	}
	if c.Vsock != nil {
		if err := m.listenVsock(c.Vsock.Path); err != nil {
			return fmt.Errorf("BuildFromJson(StartMicroVM(CreateVsockBackend(%w)))", err)
		}
	}
	if c.Balloon != nil {
		m.balloon = c.Balloon.Amount
	}
	m.config, m.state = c, "Running"
	args := ""
	if c.Boot.Args != nil {
		args = *c.Boot.Args
	}
	m.realtime = !strings.Contains(args, NoClockArg)
	drives := m.driveIDs()
	m.guest.place(args, c, drives)
	go func() { m.ended <- m.guest.boot(args, c, len(drives)) }()
	_ = m.writeMetrics()
	m.log.info("Successfully started microvm that was configured from one single json")
	return nil
}

// openTap takes a tap device, which only one VM may have at a time. The fakes of one
// Install share a host; in a jail they do not see that.
func (m *machine) openTap(name string) error {
	if m.home == "/" {
		return nil
	}
	l, err := net.Listen("unix", "@"+m.home+"/"+name)
	if err != nil {
		return fmt.Errorf("Cannot open/create the tap device: Error while creating ifreq structure: %w", unix.EBUSY) //nolint:staticcheck // Firecracker's words
	}
	m.taps = append(m.taps, l)
	return nil
}

func (m *machine) listenVsock(path string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("UnixBind(%w)", err)
	}
	l.SetUnlinkOnClose(false)
	go m.guest.serveVsock(l)
	return nil
}

func (m *machine) driveIDs() []string {
	var ids []string
	for _, d := range m.config.Drives {
		ids = append(ids, d.ID)
	}
	return ids
}

// rescan is what the guest finds on its bus.
func (m *machine) rescan() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(m.driveIDs(), func(id string) bool { return slices.Contains(m.astray, id) })
}

// ask is what the guest gets of the metadata service: the real one with a token, over
// the network.
func (m *machine) ask() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.config.MMDS == nil {
		return ""
	}
	data, err := json.Marshal(m.metadata())
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// openMetrics opens for both directions, so that a FIFO needs no reader.
func (m *machine) openMetrics(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NONBLOCK, 0o644)
	if err == nil {
		m.metrics = f
	}
	return err
}

// metricsPadding makes metrics about as long as the real ones are.
const metricsPadding = 12000

func (m *machine) writeMetrics() error {
	if m.metrics == nil {
		return nil
	}
	m.flushes++
	_, err := fmt.Fprintf(m.metrics, "{\"utc_timestamp_ms\":%d,\"api_server\":%q}\n", m.flushes, strings.Repeat("x", metricsPadding))
	return err
}

// refusal is what the API answers with status 400.
type refusal string

func (r refusal) Error() string { return string(r) }

const (
	postBoot = refusal("The requested operation is not supported after starting the microVM.")
	preBoot  = refusal("The requested operation is not supported before starting the microVM.")
	noDevice = refusal("Internal VMM error: Failed perform action on device: Device not found")
	noPCI    = refusal("PCI is not enabled")
	tooLarge = refusal("MMDS limit exceeded error: The MMDS patch request doesn't fit.")
)

// maxBody is HTTP_MAX_PAYLOAD_SIZE.
const maxBody = 51200

// ServeHTTP implements the API.
func (m *machine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.waiting.Add(1)
	defer m.waiting.Add(-1)
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err == nil && len(body) > maxBody {
		err = errors.New("the payload is too large")
	}
	if r.URL.Path == "/mmds" || len(body) == 0 { // metadata is not logged
		m.log.info(fmt.Sprintf("The API server received a %s request on %q.", r.Method, r.URL.Path))
	} else {
		m.log.info(fmt.Sprintf("The API server received a %s request on %q with body %q.", r.Method, r.URL.Path, body))
	}
	var out any
	if err == nil {
		err = m.allowed(r.Method, r.URL.Path, body)
	}
	fatal := false
	if err == nil {
		m.mu.Lock()
		out, err = m.handle(r.Method, r.URL.Path, body)
		m.mu.Unlock()
		fatal = errors.As(err, new(fatalError))
	}
	w.Header().Set("Content-Type", "application/json")
	switch {
	case err != nil:
		m.log.error("Received Error. Status code: 400 Bad Request. Message: " + err.Error())
		status := http.StatusBadRequest
		if errors.Is(err, tooLarge) {
			status = http.StatusRequestEntityTooLarge
		}
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]string{"fault_message": err.Error()})
	case out != nil:
		_ = json.NewEncoder(w).Encode(out)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
	if fatal { // it answers, and ends
		_ = http.NewResponseController(w).Flush()
		m.ended <- exitError
	}
}

// allowed holds a request to the description, and to what Firecracker checks
// beyond it: a PUT or PATCH has a body, a GET or DELETE has none, an id has no
// hyphen.
func (m *machine) allowed(method, path string, body []byte) error {
	switch {
	case method == http.MethodGet && len(body) > 0:
		return refusal("GET request cannot have a body.")
	case method == http.MethodDelete && len(body) > 0:
		return refusal("Empty Delete request.")
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
