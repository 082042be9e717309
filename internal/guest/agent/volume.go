package agent

import (
	"encoding/json"
	"path"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mvmctl/mvm/internal/guest/boot"
	"github.com/mvmctl/mvm/internal/guest/wire"
)

// diskWait is how long a disk that the host has plugged in may take to appear.
const diskWait = 10 * time.Second

// noticeWait is how long a kernel may take that hears of new disks by itself.
const noticeWait = time.Second

// volume answers the requests about volumes.
func (s *Server) volume(r *ssh.Request) (any, error) {
	if r.Type == wire.ReqVolumeRelease {
		var v wire.VolumeRelease
		if err := json.Unmarshal(r.Payload, &v); err != nil {
			return nil, err
		}
		return struct{}{}, boot.ReleaseDisk(v.Serials, v.Eject)
	}
	var v wire.Volume
	if err := json.Unmarshal(r.Payload, &v); err != nil {
		return nil, err
	}
	return takeVolume(v)
}

// takeVolume looks for a disk and mounts it where it is to be.
func takeVolume(v wire.Volume) (wire.VolumeTaken, error) {
	device, err := boot.FindDisk(v.Serials, v.Nth, noticeWait)
	if err != nil {
		if err := boot.RescanPCI(); err != nil {
			return wire.VolumeTaken{}, err
		}
		if device, err = boot.FindDisk(v.Serials, v.Nth, diskWait); err != nil {
			return wire.VolumeTaken{}, err
		}
	}
	taken := wire.VolumeTaken{Device: device}
	if v.Mount == "" {
		return taken, nil
	}
	v.Mount = path.Clean(v.Mount)
	root, err := boot.OpenRootfs("/")
	if err != nil {
		return taken, err
	}
	defer func() { _ = root.Close() }()
	return taken, boot.MountVolume(root, v, device)
}
