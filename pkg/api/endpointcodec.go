package api

// endpointHead is what the usual form of an endpoint begins with.
const endpointHead = `{"kind":"WorkloadEndpoint","apiVersion":"` + Version + `","metadata":{`

// readUsual fills the endpoint from raw, if that has the usual form and none of the fields that few pods have. All its strings are parts of one, since
// endpoints stay. Labels and annotations that like has too are taken from there: pods of a kind bear the same. like is such an endpoint, or nil.
func (w *WorkloadEndpoint) readUsual(raw []byte, like *WorkloadEndpoint) bool {
	if like == nil {
		like = &WorkloadEndpoint{}
	}
	r := endpointReader{usualReader: usualReader{raw: raw}, all: string(raw)}
	w.TypeMeta = TypeMeta{Kind: "WorkloadEndpoint", APIVersion: Version}
	r.want(endpointHead)
	r.metadata(&w.Metadata, &like.Metadata)
	r.want(`,"spec":{`)
	r.spec(&w.Spec)
	r.want(`}`)
	if r.failed || r.at < len(raw) {
		*w = WorkloadEndpoint{}
		return false
	}
	return true
}

// endpointReader reads an endpoint.
type endpointReader struct {
	usualReader
	all string // what is read
}

// string is the next one.
func (r *endpointReader) string() string {
	text := r.text()
	if r.failed {
		return ""
	}
	end := r.at - len(`"`)
	return r.all[end-len(text) : end]
}

// strings are objects' fields in their order, each of which may be missing.
func (r *endpointReader) strings(f *givenFields, list []stringField) {
	for _, s := range list {
		if f.has(s.name) {
			*s.to = r.string()
		}
	}
}

type stringField struct {
	name string
	to   *string
}

// metadata reads up to the end of the object that has begun.
func (r *endpointReader) metadata(m, like *ObjectMeta) {
	f := givenFields{r: &r.usualReader}
	r.strings(&f, []stringField{
		{`"name":`, &m.Name}, {`"generateName":`, &m.GenerateName}, {`"namespace":`, &m.Namespace}, {`"uid":`, &m.UID},
	})
	if f.has(`"creationTimestamp":`) {
		m.CreationTimestamp = *r.time()
	}
	if f.has(`"labels":`) {
		m.Labels = r.words(like.Labels)
	}
	if f.has(`"annotations":`) {
		m.Annotations = r.words(like.Annotations)
	}
	r.want(`}`)
}

// spec reads up to the end of the object that has begun.
func (r *endpointReader) spec(s *WorkloadEndpointSpec) {
	f := givenFields{r: &r.usualReader}
	r.strings(&f, []stringField{
		{`"orchestrator":`, &s.Orchestrator}, {`"workload":`, &s.Workload}, {`"node":`, &s.Node}, {`"containerID":`, &s.ContainerID},
		{`"pod":`, &s.Pod}, {`"endpoint":`, &s.Endpoint}, {`"serviceAccountName":`, &s.ServiceAccountName},
	})
	if f.has(`"ipNetworks":`) {
		s.IPNetworks = []Prefix{}
		r.elements(`[`, `]`, func() { s.IPNetworks = append(s.IPNetworks, r.network()) })
	}
	if f.has(`"profiles":`) {
		s.Profiles = []string{}
		r.elements(`[`, `]`, func() { s.Profiles = append(s.Profiles, r.string()) })
	}
	r.strings(&f, []stringField{{`"interfaceName":`, &s.InterfaceName}, {`"mac":`, &s.MAC}})
	if f.has(`"ports":`) {
		s.Ports = []WEPort{}
		r.elements(`[`, `]`, func() { s.Ports = append(s.Ports, r.port()) })
	}
	r.want(`}`)
}

// network is an address, with or without prefix length.
func (r *endpointReader) network() (p Prefix) {
	if p.UnmarshalText(r.text()) != nil {
		r.fail()
	}
	return p
}

func (r *endpointReader) port() (p WEPort) {
	r.want(`{"name":`)
	p.Name = r.string()
	r.want(`,"protocol":`)
	p.Protocol = ProtocolNamed(r.string())
	r.want(`,"port":`)
	p.Port = r.short()
	r.want(`,"hostPort":`)
	p.HostPort = r.short()
	r.want(`,"hostIP":`)
	p.HostIP = r.string()
	r.want(`}`)
	return p
}

// words is an object of strings: the one that is given, if it says the same.
func (r *endpointReader) words(like map[string]string) map[string]string {
	before := r.usualReader
	if like != nil && r.says(like) {
		return like
	}
	r.usualReader = before
	out := map[string]string{}
	r.pairs(func(key []byte) {
		end := r.at - len(`":`)
		out[r.all[end-len(key):end]] = r.string()
	})
	return out
}

// appendUsual adds the endpoint to the text in its stored form, as encoding/json would write it; ok is false if it has to.
func (w *WorkloadEndpoint) appendUsual(to []byte) (out []byte, ok bool) {
	m, s := w.Metadata, w.Spec
	if m.DeletionTimestamp != nil || len(s.IPNATs)+len(s.AllowSpoofed) > 0 || s.IPv4Gateway != "" || s.IPv6Gateway != "" || s.QoSControls != nil {
		return nil, false
	}
	stored := WorkloadEndpoint{Header: Header{Metadata: m}, Spec: s}
	stored.toStored()
	t := usualWriter{out: to}
	t.raw(endpointHead)
	t.metadata(stored.Metadata)
	t.raw(`},"spec":{`)
	t.endpoint(s)
	t.raw(`}}`)
	return t.out, !t.failed
}

// metadata leaves out what is empty, and the resource version.
func (w *usualWriter) metadata(m ObjectMeta) {
	f := writtenFields{w: w}
	f.text(`"name":`, m.Name)
	f.text(`"generateName":`, m.GenerateName)
	f.text(`"namespace":`, m.Namespace)
	f.text(`"uid":`, m.UID)
	if !m.CreationTimestamp.IsZero() {
		f.next(`"creationTimestamp":`)
		w.time(m.CreationTimestamp)
	}
	if len(m.Labels) > 0 {
		f.next(`"labels":`)
		writeMap(w, m.Labels, w.text)
	}
	if len(m.Annotations) > 0 {
		f.next(`"annotations":`)
		writeMap(w, m.Annotations, w.text)
	}
}

// endpoint leaves out what is empty.
func (w *usualWriter) endpoint(s WorkloadEndpointSpec) {
	f := writtenFields{w: w}
	f.text(`"orchestrator":`, s.Orchestrator)
	f.text(`"workload":`, s.Workload)
	f.text(`"node":`, s.Node)
	f.text(`"containerID":`, s.ContainerID)
	f.text(`"pod":`, s.Pod)
	f.text(`"endpoint":`, s.Endpoint)
	f.text(`"serviceAccountName":`, s.ServiceAccountName)
	if len(s.IPNetworks) > 0 {
		f.next(`"ipNetworks":`)
		writeList(w, s.IPNetworks, func(p Prefix) { w.prefix(p.Prefix) })
	}
	if len(s.Profiles) > 0 {
		f.next(`"profiles":`)
		writeList(w, s.Profiles, w.text)
	}
	f.text(`"interfaceName":`, s.InterfaceName)
	f.text(`"mac":`, s.MAC)
	if len(s.Ports) > 0 {
		f.next(`"ports":`)
		writeList(w, s.Ports, w.port)
	}
}

func (w *usualWriter) port(p WEPort) {
	w.failed = w.failed || p.Protocol.Name == ""
	w.raw(`{"name":`)
	w.text(p.Name)
	w.raw(`,"protocol":`)
	w.text(p.Protocol.Name)
	w.raw(`,"port":`)
	w.number(uint64(p.Port))
	w.raw(`,"hostPort":`)
	w.number(uint64(p.HostPort))
	w.raw(`,"hostIP":`)
	w.text(p.HostIP)
	w.raw(`}`)
}
