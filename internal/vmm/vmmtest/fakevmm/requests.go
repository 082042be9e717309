package fakevmm

import (
	"encoding/json"
	"fmt"
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
		if m.config == nil {
			return map[string]any{"drives": []any{}}, nil
		}
		return m.config, nil
	}
	if m.state == "Not started" {
		return m.beforeBoot(method, path, body)
	}
	switch head, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/"); method + " " + head {
	case "GET machine-config":
		return m.config.Machine, nil
	case "GET mmds":
		if m.config.MMDS == nil {
			return nil, noStore
		}
		return m.metadata(), nil
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
		return nil, m.addDrive(body)
	case "DELETE drives":
		return nil, m.removeDrive(strings.TrimPrefix(path, "/drives/"))
	case "PUT mmds", "PATCH mmds":
		return nil, m.setMetadata(method, path, body)
	case "PUT snapshot":
		return nil, m.onSnapshot(path, body)
	}
	return nil, postBoot
}

// beforeBoot is a Firecracker without configuration file. This one boots by such a
// file only: without, it loads snapshots.
func (m *machine) beforeBoot(method, path string, body []byte) (any, error) {
	switch method + " " + path {
	case "GET /machine-config":
		return machineConfig{VCPUs: 1, Mem: 128, HugePages: "None"}, nil
	case "GET /mmds":
		return m.metadata(), nil
	case "PUT /mmds":
		return nil, m.putMetadata(body)
	case "PUT /snapshot/load":
		return nil, m.load(body)
	case "PUT /metrics":
		var c metricsConfig
		if err := json.Unmarshal(body, &c); err != nil {
			return nil, err
		}
		if m.metrics != nil {
			return nil, refusal("Metrics error: Cannot initialize the metrics system due to bad user input: Reinitialization of metrics not allowed.")
		}
		return nil, m.openMetrics(c.Path)
	}
	if method == "PUT" && path != "/actions" && path != "/snapshot/create" {
		return nil, refusal("fakevmm boots by a configuration file only")
	}
	return nil, preBoot
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
		if err := m.writeMetrics(); err != nil { // without metrics, nothing is said
			return refusal("Internal VMM error: Metrics error: Failed to write metrics: " + err.Error())
		}
		return nil
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
