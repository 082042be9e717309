package cloudinit

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestKernelArgs(t *testing.T) {
	small := &Network{MAC: "02:FC:00:00:00:01", Address: "172.27.0.2/24", MTU: 1400}
	for _, c := range []struct {
		source Source
		want   string
		net    string // what is in network-config
	}{
		{Source{InstanceID: "i1"}, "cloud-init=enabled ds=nocloud;i=i1", ""},
		{Source{InstanceID: "i1", NoNetwork: true}, "cloud-init=enabled ds=nocloud;i=i1 network-config=disabled", ""},
		{Source{InstanceID: "i1", URL: "http://172.27.0.1:8000/", Network: web.Network},
			"cloud-init=enabled ds=nocloud;i=i1;dsmode=net;s=http://172.27.0.1:8000/",
			`{"version":2,"ethernets":{"eth0":{"match":{"macaddress":"02:fc:00:00:00:01"},"set-name":"eth0","dhcp4":false,"addresses":["172.27.0.2/24"],` +
				`"routes":[{"to":"0.0.0.0/0","via":"172.27.0.1"}],"nameservers":{"addresses":["1.1.1.1","9.9.9.9"]}}}}`},
		{Source{InstanceID: "i1", Network: small}, "cloud-init=enabled ds=nocloud;i=i1",
			`{"version":2,"ethernets":{"eth0":{"match":{"macaddress":"02:fc:00:00:00:01"},"set-name":"eth0","dhcp4":false,"addresses":["172.27.0.2/24"],"mtu":1400}}}`},
	} {
		args := c.source.KernelArgs()
		if c.net != "" {
			last := args[len(args)-1]
			data, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(last, "network-config="))
			if err != nil || string(data) != c.net {
				t.Errorf("%s is %s, %v", last, data, err)
			}
			yaml, err := c.source.Network.YAML()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(value(t, string(yaml)), value(t, string(data))); diff != "" {
				t.Errorf("the document and the argument differ:\n%s", diff)
			}
			args = args[:len(args)-1]
		}
		if got := strings.Join(args, " "); got != c.want {
			t.Errorf("%+v gives %q", c.source, got)
		}
	}
}
