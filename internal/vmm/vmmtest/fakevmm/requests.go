package fakevmm

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// handle carries out an allowed request, with the lock held. A nil result is
// answered with 204.
func (m *machine) handle(method, path string, body []byte) (any, error) {
	switch method + " " + path {
	case "GET /":
		return map[string]string{"app_name": "Firecracker", "id": m.id, "state": m.state, "vmm_version": Version}, nil
	case "GET /version":
		return map[string]string{"firecracker_version": Version}, nil
	case "GET /vm/config":
		if m.raw == nil {
			return map[string]any{"drives": []any{}}, nil
		}
		return json.RawMessage(m.raw), nil
	case "GET /mmds":
		return m.metadata, m.hasMetadata()
	}
	if m.state == "Not started" {
		return nil, preBoot
	}
	switch head, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/"); method + " " + head {
	case "PUT actions":
		return nil, m.action(body)
	case "PATCH vm":
		return nil, m.setState(body)
	case "GET balloon", "PATCH balloon":
		return m.onBalloon(method, path, body)
	case "PATCH drives":
		return nil, m.updateDrive(body)
	case "PATCH network-interfaces":
		return nil, m.updateNIC(body)
	case "PUT drives":
		if !m.pci {
			return nil, refusal("PCI is not enabled")
		}
		return nil, m.addDrive(body)
	case "PUT mmds", "PATCH mmds":
		return nil, m.setMetadata(method, path, body)
	case "PUT snapshot":
		return nil, m.snapshot(path, body)
	}
	return nil, postBoot
}

func (m *machine) action(body []byte) error {
	var a struct {
		Type string `json:"action_type"`
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return err
	}
	switch a.Type {
	case "SendCtrlAltDel":
		m.guest.ctrlAltDel()
		return nil
	case "FlushMetrics":
		if m.config.Metrics == nil {
			return refusal("Internal VMM error: Metrics error: Logger was not initialized.")
		}
		return appendLine(m.config.Metrics.Path, `{"utc_timestamp_ms":0}`)
	case "InstanceStart":
		return postBoot
	}
	return refusal(fmt.Sprintf("unknown variant `%s`", a.Type))
}

func (m *machine) setState(body []byte) error {
	var s struct {
		State string `json:"state"`
	}
	if err := json.Unmarshal(body, &s); err != nil {
		return err
	}
	switch s.State { // asking twice is fine with the real one
	case "Paused":
		m.guest.pause()
		m.state = "Paused"
	case "Resumed":
		m.guest.resume()
		m.state = "Running"
	default:
		return refusal(fmt.Sprintf("unknown variant `%s`, expected `Paused` or `Resumed`", s.State))
	}
	return nil
}

// snapshot goes as far as Firecracker does before it writes memory: the vsock
// reset is queued, then the file is opened.
func (m *machine) snapshot(path string, body []byte) error {
	if path != "/snapshot/create" {
		return postBoot
	}
	if m.state != "Paused" {
		return refusal("Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore unavailable while running")
	}
	var s struct {
		State string `json:"snapshot_path"`
	}
	if err := json.Unmarshal(body, &s); err != nil {
		return err
	}
	m.guest.queueReset()
	f, err := os.OpenFile(s.State, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return refusal("Create snapshot error: Cannot perform open on the snapshot backing file: " + err.Error())
	}
	_ = f.Close()
	return refusal("Create snapshot error: fakevmm writes no memory")
}

func (m *machine) onBalloon(method, path string, body []byte) (any, error) {
	if m.balloon == nil {
		return nil, noDevice
	}
	stats := strings.HasSuffix(path, "/statistics")
	if method == "PATCH" {
		var change map[string]int
		if err := json.Unmarshal(body, &change); err != nil {
			return nil, err
		}
		if stats && (m.balloon["stats_polling_interval_s"] == 0) != (change["stats_polling_interval_s"] == 0) {
			return nil, refusal("Balloon update error: Statistics cannot be enabled/disabled after activation.")
		}
		if !stats && change["amount_mib"] > m.config.Machine.Mem {
			return nil, refusal(fmt.Sprintf("Balloon update error: Requested memory should be less than %dMiB", m.config.Machine.Mem))
		}
		for k, v := range change {
			m.balloon[k] = v
		}
		return nil, nil
	}
	if !stats {
		return m.config.Balloon, nil
	}
	if m.balloon["stats_polling_interval_s"] == 0 {
		return nil, refusal("Received stats query when stats are disabled.")
	}
	amount := m.balloon["amount_mib"]
	return map[string]int{"target_mib": amount, "actual_mib": amount, "target_pages": amount * 256, "actual_pages": amount * 256}, nil
}

func (m *machine) updateDrive(body []byte) error {
	var d drive
	if err := json.Unmarshal(body, &d); err != nil {
		return err
	}
	for i := range m.config.Drives {
		if m.config.Drives[i].ID != d.ID {
			continue
		}
		if d.Path != "" {
			if err := (&config{Boot: m.config.Boot, Machine: m.config.Machine, Drives: []drive{d}}).check(); err != nil {
				return err
			}
			m.config.Drives[i].Path = d.Path
		}
		return nil
	}
	return refusal("Drive config error: Unable to patch the block device: Failed perform action on device: Device not found Please verify the request arguments.")
}

func (m *machine) addDrive(body []byte) error {
	var d drive
	if err := json.Unmarshal(body, &d); err != nil {
		return err
	}
	for _, have := range m.config.Drives {
		if have.ID == d.ID {
			return refusal("Device ID in use")
		}
	}
	if err := (&config{Boot: m.config.Boot, Machine: m.config.Machine, Drives: []drive{d}}).check(); err != nil {
		return err
	}
	m.config.Drives = append(m.config.Drives, d)
	return nil
}

func (m *machine) updateNIC(body []byte) error {
	var n struct {
		ID string `json:"iface_id"`
	}
	if err := json.Unmarshal(body, &n); err != nil {
		return err
	}
	for _, have := range m.config.NICs {
		if have.ID == n.ID {
			return nil
		}
	}
	return refusal("Network config error: Unable to update the net device: Failed perform action on device: Device not found")
}

// hasMetadata tells whether there is a metadata service. The real one has one
// only where it was configured before the boot, or filled by --metadata.
func (m *machine) hasMetadata() error {
	if m.metadata == nil {
		return refusal("MMDS error: The MMDS data store is not initialized.")
	}
	return nil
}

func (m *machine) setMetadata(method, path string, body []byte) error {
	if strings.HasSuffix(path, "/config") {
		return postBoot
	}
	if err := m.hasMetadata(); err != nil {
		return err
	}
	if method == "PUT" {
		clear(m.metadata)
	}
	return json.Unmarshal(body, &m.metadata)
}
