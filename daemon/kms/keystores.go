package kms

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"keymill/daemon/wire"
	"keymill/engine"
	"keymill/keystore"
)

// # Custom key stores
//
// A custom key store of type AWS_CLOUDHSM stands for a PKCS#11 token that the
// operator has configured under a cluster id; its password is the token's PIN. One
// of type EXTERNAL_KEY_STORE stands for an XKS proxy somewhere.
//
// What a caller has said of a store is one record of the general-purpose space,
// "cks/<account>/<region>/<id>": sealed like all records, for it holds a PIN or a
// secret key. There are a few stores per account, so listing reads them all and
// there are no indexes. Changes of one daemon take turns (keyStores.mu), and the
// record's revision decides between daemons.
//
// Connecting is a state that operators set, not a measure of health (AWS KMS
// Developer Guide, custom key stores): a store stays CONNECTED while its token or
// proxy is away, and after a restart of the daemon; keys in it then fail until the
// device is back. storerun.go has what runs.

// keyStoreRows are the operations on custom key stores.
var keyStoreRows = []operation{
	{op: wire.OpConnectCustomKeyStore, run: with(connectCustomKeyStore)},
	{op: wire.OpCreateCustomKeyStore, run: with(createCustomKeyStore)},
	{op: wire.OpDeleteCustomKeyStore, run: with(deleteCustomKeyStore)},
	{op: wire.OpDescribeCustomKeyStores, run: with(describeCustomKeyStores)},
	{op: wire.OpDisconnectCustomKeyStore, run: with(disconnectCustomKeyStore)},
	{op: wire.OpUpdateCustomKeyStore, run: with(updateCustomKeyStore)},
}

// The types of custom key stores, which are the origins of their keys.
const (
	typeCloudHSM = "AWS_CLOUDHSM"
	typeExternal = "EXTERNAL_KEY_STORE"
)

// The ways to an XKS proxy.
const (
	publicEndpoint = "PUBLIC_ENDPOINT"
	vpcEndpoint    = "VPC_ENDPOINT_SERVICE"
)

// The connection states.
const (
	storeDisconnected = "DISCONNECTED"
	storeConnecting   = "CONNECTING"
	storeConnected    = "CONNECTED"
	storeFailed       = "FAILED"
)

// storeSettings is what is kept of a custom key store. It is immutable once it is
// in a keyStore.
type storeSettings struct {
	Name    string    `json:"name"`
	Type    string    `json:"type"`
	Created time.Time `json:"created"`
	State   string    `json:"state"`           // a connection state, never CONNECTING
	Failure string    `json:"error,omitempty"` // ConnectionErrorCode of FAILED

	// Of AWS_CLOUDHSM.
	Cluster     string `json:"cluster,omitempty"`
	TrustAnchor string `json:"trustAnchor,omitempty"`
	Password    []byte `json:"password,omitempty"`

	// Of EXTERNAL_KEY_STORE.
	Connectivity string `json:"connectivity,omitempty"`
	Endpoint     string `json:"endpoint,omitempty"`
	Path         string `json:"path,omitempty"`
	Service      string `json:"service,omitempty"`
	ServiceOwner string `json:"serviceOwner,omitempty"`
	AccessKeyID  string `json:"accessKeyId,omitempty"`
	SecretKey    []byte `json:"secretKey,omitempty"`
}

// A storeName is where a custom key store is kept.
type storeName struct{ account, region, id string }

const storeRecords = "cks/"

func (n storeName) record() string { return storeRecords + n.account + "/" + n.region + "/" + n.id }

func parseStoreRecord(name string) (n storeName, ok bool) {
	rest, ok := strings.CutPrefix(name, storeRecords)
	if !ok {
		return n, false
	}
	n.account, rest, _ = strings.Cut(rest, "/")
	n.region, n.id, ok = strings.Cut(rest, "/")
	return n, ok
}

func newStoreID() string {
	var b [9]byte
	engine.Random(b[:])
	return "cks-" + hex.EncodeToString(b[:])[:17]
}

func storeNotFound(id string) error {
	return wire.NewError(wire.CustomKeyStoreNotFoundException, "The custom key store %s does not exist.", id)
}

func storeInvalidState(format string, args ...any) error {
	return wire.NewError(wire.CustomKeyStoreInvalidStateException, format, args...)
}

// customKeyStore finds a store of the caller's account and region.
func (x *exchange) customKeyStore(id string) (*keyStore, error) {
	st := x.svc.stores.get(storeName{x.account, x.region, id})
	if st == nil {
		return nil, storeNotFound(id)
	}
	return st, nil
}

func createCustomKeyStore(x *exchange, in *wire.CreateCustomKeyStoreRequest) error {
	set := &storeSettings{
		Name:    strings.Clone(in.CustomKeyStoreName),
		Type:    typeCloudHSM,
		Created: x.now.UTC(),
		State:   storeDisconnected,
	}
	if in.CustomKeyStoreType == typeExternal {
		set.Type = typeExternal
	}
	if err := x.newStoreSettings(set, in); err != nil {
		return err
	}
	s := x.svc
	s.stores.mu.Lock()
	defer s.stores.mu.Unlock()
	all := s.stores.of(x.account, x.region)
	for _, other := range all {
		if other.settings.Load().sameRequest(set) && other.state() == storeDisconnected {
			resp := wire.CreateCustomKeyStoreResponse{CustomKeyStoreId: other.name.id}
			x.out = resp.AppendJSON(x.out)
			return nil
		}
	}
	if most := s.quota.Resources().CustomKeyStores; most > 0 && len(all) >= most {
		return wire.NewError(wire.LimitExceededException, "The account has %d custom key stores in this Region, which is the limit.", len(all))
	}
	if err := s.unusedSettings(all, nil, set); err != nil {
		return err
	}
	if err := x.probe(set); err != nil {
		return err
	}
	name := storeName{x.account, x.region, newStoreID()}
	st := &keyStore{svc: s, name: name, bucket: s.quota.CustomKeyStore(name.id)}
	if err := st.save(set); err != nil {
		return err
	}
	s.stores.put(st)
	resp := wire.CreateCustomKeyStoreResponse{CustomKeyStoreId: name.id}
	x.out = resp.AppendJSON(x.out)
	return nil
}

// newStoreSettings takes the properties of a new store from the request and
// refuses those that its type lacks or misses.
func (x *exchange) newStoreSettings(set *storeSettings, in *wire.CreateCustomKeyStoreRequest) error {
	type property struct {
		name  string
		given bool
	}
	cloud := []property{
		{"CloudHsmClusterId", in.CloudHsmClusterId != ""},
		{"KeyStorePassword", in.KeyStorePassword != ""},
		{"TrustAnchorCertificate", in.TrustAnchorCertificate != ""},
	}
	external := []property{
		{"XksProxyAuthenticationCredential", in.XksProxyAuthenticationCredential != nil},
		{"XksProxyConnectivity", in.XksProxyConnectivity != ""},
		{"XksProxyUriEndpoint", in.XksProxyUriEndpoint != ""},
		{"XksProxyUriPath", in.XksProxyUriPath != ""},
	}
	needed, others := cloud, external
	if set.Type == typeExternal {
		needed, others = external, cloud
	} else {
		others = append(others, property{"XksProxyVpcEndpointServiceName", in.XksProxyVpcEndpointServiceName != ""},
			property{"XksProxyVpcEndpointServiceOwner", in.XksProxyVpcEndpointServiceOwner != ""})
	}
	for _, p := range needed {
		if !p.given {
			return invalid("You must specify %s for a custom key store of type %s.", p.name, set.Type)
		}
	}
	for _, p := range others {
		if p.given {
			return invalid("You cannot specify %s for a custom key store of type %s.", p.name, set.Type)
		}
	}
	if set.Type == typeCloudHSM {
		set.Cluster = strings.Clone(in.CloudHsmClusterId)
		set.TrustAnchor = strings.Clone(in.TrustAnchorCertificate)
		set.Password = []byte(in.KeyStorePassword)
		return x.svc.checkCluster(set, nil)
	}
	set.Connectivity = strings.Clone(in.XksProxyConnectivity)
	set.Endpoint, set.Path = strings.Clone(in.XksProxyUriEndpoint), strings.Clone(in.XksProxyUriPath)
	set.AccessKeyID = strings.Clone(in.XksProxyAuthenticationCredential.AccessKeyId)
	set.SecretKey = []byte(in.XksProxyAuthenticationCredential.RawSecretAccessKey)
	set.Service, set.ServiceOwner = strings.Clone(in.XksProxyVpcEndpointServiceName), strings.Clone(in.XksProxyVpcEndpointServiceOwner)
	return x.checkConnectivity(set)
}

// checkConnectivity checks that a store names a VPC endpoint service if, and only
// if, it is reached through one.
func (x *exchange) checkConnectivity(set *storeSettings) error {
	switch {
	case set.Connectivity == vpcEndpoint && set.Service == "":
		return invalid("You must specify XksProxyVpcEndpointServiceName when XksProxyConnectivity is %s.", vpcEndpoint)
	case set.Connectivity == publicEndpoint && set.Service+set.ServiceOwner != "":
		return invalid("You cannot specify XksProxyVpcEndpointServiceName or XksProxyVpcEndpointServiceOwner when XksProxyConnectivity is %s.", publicEndpoint)
	case set.Connectivity == vpcEndpoint && set.ServiceOwner == "":
		set.ServiceOwner = x.account
	}
	return nil
}

// sameRequest tells whether a request for a new store asks for the one there is.
func (set *storeSettings) sameRequest(other *storeSettings) bool {
	a, b := *set, *other
	for _, s := range []*storeSettings{&a, &b} {
		s.Created, s.State, s.Failure, s.Password, s.SecretKey = time.Time{}, "", "", nil, nil
	}
	x, errX := json.Marshal(&a)
	y, errY := json.Marshal(&b)
	return errX == nil && errY == nil && string(x) == string(y) &&
		equalSecret(set.Password, other.Password) && equalSecret(set.SecretKey, other.SecretKey)
}

// unusedSettings refuses a name, cluster or proxy that another store has. but is
// the store that is being changed, nil for a new one.
func (s *Service) unusedSettings(all []*keyStore, but *keyStore, set *storeSettings) error {
	for _, st := range all {
		if st == but {
			continue
		}
		other := st.settings.Load()
		if other.Name == set.Name {
			return wire.NewError(wire.CustomKeyStoreNameInUseException, "The custom key store %s already has the name %s.", st.name.id, set.Name)
		}
		if other.Type != set.Type {
			continue
		}
		switch {
		case set.Type == typeCloudHSM && other.Cluster == set.Cluster:
			return wire.NewError(wire.CloudHsmClusterInUseException, "The cluster %s belongs to the custom key store %s.", set.Cluster, st.name.id)
		case set.Type != typeExternal:
		case set.Connectivity == vpcEndpoint && other.Connectivity == vpcEndpoint && other.Service == set.Service:
			return wire.NewError(wire.XksProxyVpcEndpointServiceInUseException, "The VPC endpoint service %s belongs to the custom key store %s.", set.Service, st.name.id)
		case other.Endpoint == set.Endpoint && (set.Connectivity == vpcEndpoint || other.Connectivity == vpcEndpoint):
			return wire.NewError(wire.XksProxyUriEndpointInUseException, "The endpoint %s belongs to the custom key store %s.", set.Endpoint, st.name.id)
		case other.Endpoint == set.Endpoint && other.Path == set.Path:
			return wire.NewError(wire.XksProxyUriInUseException, "The proxy %s%s belongs to the custom key store %s.", set.Endpoint, set.Path, st.name.id)
		}
	}
	return nil
}

func describeCustomKeyStores(x *exchange, in *wire.DescribeCustomKeyStoresRequest) error {
	if in.CustomKeyStoreId != "" && in.CustomKeyStoreName != "" {
		return invalid("You can specify CustomKeyStoreId or CustomKeyStoreName, not both.")
	}
	after, err := x.readMarker(in.Marker)
	if err != nil {
		return err
	}
	limit := pageSize(in.Limit, defaultKeyPage, maxKeyPage)
	resp := wire.DescribeCustomKeyStoresResponse{CustomKeyStores: []wire.CustomKeyStoresListEntry{}, Truncated: wire.Some(false)}
	for _, st := range x.svc.stores.of(x.account, x.region) {
		set := st.settings.Load()
		if in.CustomKeyStoreId != "" && st.name.id != in.CustomKeyStoreId || in.CustomKeyStoreName != "" && set.Name != in.CustomKeyStoreName || st.name.id <= after {
			continue
		}
		if len(resp.CustomKeyStores) == limit {
			resp.Truncated = wire.Some(true)
			resp.NextMarker = x.marker(resp.CustomKeyStores[limit-1].CustomKeyStoreId)
			break
		}
		resp.CustomKeyStores = append(resp.CustomKeyStores, storeEntry(st, set))
	}
	if len(resp.CustomKeyStores) == 0 && in.CustomKeyStoreId+in.CustomKeyStoreName != "" {
		return storeNotFound(in.CustomKeyStoreId + in.CustomKeyStoreName)
	}
	x.out = resp.AppendJSON(x.out)
	return nil
}

func storeEntry(st *keyStore, set *storeSettings) wire.CustomKeyStoresListEntry {
	e := wire.CustomKeyStoresListEntry{
		CustomKeyStoreId:       st.name.id,
		CustomKeyStoreName:     set.Name,
		CustomKeyStoreType:     set.Type,
		ConnectionState:        st.state(),
		CreationDate:           timestamp(set.Created),
		CloudHsmClusterId:      set.Cluster,
		TrustAnchorCertificate: set.TrustAnchor,
	}
	if e.ConnectionState == storeFailed {
		e.ConnectionErrorCode = set.Failure
	}
	if set.Type == typeExternal {
		e.XksProxyConfiguration = &wire.XksProxyConfigurationType{
			AccessKeyId:             set.AccessKeyID,
			Connectivity:            set.Connectivity,
			UriEndpoint:             set.Endpoint,
			UriPath:                 set.Path,
			VpcEndpointServiceName:  set.Service,
			VpcEndpointServiceOwner: set.ServiceOwner,
		}
	}
	return e
}

func updateCustomKeyStore(x *exchange, in *wire.UpdateCustomKeyStoreRequest) error {
	s := x.svc
	s.stores.mu.Lock()
	defer s.stores.mu.Unlock()
	st, err := x.customKeyStore(in.CustomKeyStoreId)
	if err != nil {
		return err
	}
	old := st.settings.Load()
	set := *old
	if err := changeSettings(&set, in); err != nil {
		return err
	}
	if apart := needsDisconnected(old, &set); apart != "" && st.state() != storeDisconnected {
		return storeInvalidState("%s can only be changed while the custom key store is DISCONNECTED; %s is %s.", apart, st.name.id, st.state())
	}
	if set.Type == typeExternal {
		if err := x.checkConnectivity(&set); err != nil {
			return err
		}
	} else if set.Cluster != old.Cluster {
		if err := s.checkCluster(&set, old); err != nil {
			return err
		}
	}
	if err := s.unusedSettings(s.stores.of(x.account, x.region), st, &set); err != nil {
		return err
	}
	if set.proxyDiffers(old) {
		if err := x.probe(&set); err != nil {
			return err
		}
	}
	if err := st.save(&set); err != nil {
		return err
	}
	if set.proxyDiffers(old) && st.state() == storeConnected {
		st.reconnect()
	}
	x.out = append(x.out, "{}"...)
	return nil
}

// proxyDiffers tells whether what is needed to reach the proxy has changed.
func (set *storeSettings) proxyDiffers(old *storeSettings) bool {
	return set.Type == typeExternal && (set.Endpoint != old.Endpoint || set.Path != old.Path || set.Connectivity != old.Connectivity ||
		set.Service != old.Service || set.ServiceOwner != old.ServiceOwner ||
		set.AccessKeyID != old.AccessKeyID || !equalSecret(set.SecretKey, old.SecretKey))
}

// needsDisconnected names the first property that differs and may only change in a
// disconnected store, "" for none.
func needsDisconnected(old, set *storeSettings) string {
	switch {
	case set.Cluster != old.Cluster:
		return "CloudHsmClusterId"
	case !equalSecret(set.Password, old.Password):
		return "KeyStorePassword"
	case set.Connectivity != old.Connectivity:
		return "XksProxyConnectivity"
	case set.Endpoint != old.Endpoint:
		return "XksProxyUriEndpoint"
	case set.Service != old.Service:
		return "XksProxyVpcEndpointServiceName"
	case set.ServiceOwner != old.ServiceOwner:
		return "XksProxyVpcEndpointServiceOwner"
	}
	return ""
}

// changeSettings applies a request to the settings of a store.
func changeSettings(set *storeSettings, in *wire.UpdateCustomKeyStoreRequest) error {
	changes := 0
	change := func(to *string, value string) {
		if value != "" {
			*to = strings.Clone(value)
			changes++
		}
	}
	wrong := ""
	for name, given := range map[string]bool{
		"CloudHsmClusterId": in.CloudHsmClusterId != "",
		"KeyStorePassword":  in.KeyStorePassword != "",
	} {
		if given && set.Type != typeCloudHSM {
			wrong = name
		}
	}
	if in.XksProxyAuthenticationCredential != nil || in.XksProxyConnectivity+in.XksProxyUriEndpoint+in.XksProxyUriPath+in.XksProxyVpcEndpointServiceName+in.XksProxyVpcEndpointServiceOwner != "" {
		if set.Type != typeExternal {
			wrong = "XksProxy..."
		}
	}
	if wrong != "" {
		return invalid("You cannot specify %s for a custom key store of type %s.", wrong, set.Type)
	}
	change(&set.Name, in.NewCustomKeyStoreName)
	change(&set.Cluster, in.CloudHsmClusterId)
	if in.KeyStorePassword != "" {
		set.Password = []byte(in.KeyStorePassword)
		changes++
	}
	if c := in.XksProxyConnectivity; c == publicEndpoint && c != set.Connectivity {
		set.Service, set.ServiceOwner = "", ""
	}
	change(&set.Connectivity, in.XksProxyConnectivity)
	change(&set.Endpoint, in.XksProxyUriEndpoint)
	change(&set.Path, in.XksProxyUriPath)
	change(&set.Service, in.XksProxyVpcEndpointServiceName)
	change(&set.ServiceOwner, in.XksProxyVpcEndpointServiceOwner)
	if c := in.XksProxyAuthenticationCredential; c != nil {
		set.AccessKeyID = strings.Clone(c.AccessKeyId)
		set.SecretKey = []byte(c.RawSecretAccessKey)
		changes++
	}
	if changes == 0 {
		return invalid("You must specify at least one property to change.")
	}
	return nil
}

func deleteCustomKeyStore(x *exchange, in *wire.DeleteCustomKeyStoreRequest) error {
	s := x.svc
	s.stores.mu.Lock()
	defer s.stores.mu.Unlock()
	st, err := x.customKeyStore(in.CustomKeyStoreId)
	if err != nil {
		return err
	}
	if state := st.state(); state != storeDisconnected {
		return storeInvalidState("The custom key store %s is %s; disconnect it first.", st.name.id, state)
	}
	keys, _, err := s.store.ListStoreKeys(st.name.id, nil, 1)
	if err != nil {
		return err
	}
	if len(keys) > 0 {
		return wire.NewError(wire.CustomKeyStoreHasCMKsException, "The custom key store %s has KMS keys; schedule their deletion and wait until they are deleted.", st.name.id)
	}
	t := s.store.NewTxn()
	t.Delete(st.name.record(), st.rev.Load())
	if err := commit(t); err != nil {
		return err
	}
	s.stores.remove(st)
	x.out = append(x.out, "{}"...)
	return nil
}

func connectCustomKeyStore(x *exchange, in *wire.ConnectCustomKeyStoreRequest) error {
	s := x.svc
	s.stores.mu.Lock()
	defer s.stores.mu.Unlock()
	st, err := x.customKeyStore(in.CustomKeyStoreId)
	if err != nil {
		return err
	}
	switch st.state() {
	case storeFailed:
		return storeInvalidState("The custom key store %s is FAILED (%s); disconnect it, mend what is wrong, and connect it again.", st.name.id, st.settings.Load().Failure)
	case storeDisconnected:
		if set := st.settings.Load(); set.Type == typeCloudHSM {
			if err := s.checkCluster(set, set); err != nil {
				return err
			}
		}
		st.connect()
	}
	x.out = append(x.out, "{}"...)
	return nil
}

func disconnectCustomKeyStore(x *exchange, in *wire.DisconnectCustomKeyStoreRequest) error {
	s := x.svc
	s.stores.mu.Lock()
	defer s.stores.mu.Unlock()
	st, err := x.customKeyStore(in.CustomKeyStoreId)
	if err != nil {
		return err
	}
	if st.state() == storeDisconnected {
		return storeInvalidState("The custom key store %s is DISCONNECTED already.", st.name.id)
	}
	if err := st.disconnect(); err != nil {
		return err
	}
	x.out = append(x.out, "{}"...)
	return nil
}

// loadStores reads the custom key stores at start.
func (s *Service) loadStores() error {
	after := ""
	for {
		page, more, err := s.store.Scan(storeRecords, after, 100)
		if err != nil {
			return err
		}
		for _, r := range page {
			name, ok := parseStoreRecord(r.Name)
			set := new(storeSettings)
			if !ok || json.Unmarshal(r.Value, set) != nil {
				return fmt.Errorf("kms: the record of the custom key store %s does not decode", r.Name)
			}
			st := &keyStore{svc: s, name: name, bucket: s.quota.CustomKeyStore(name.id)}
			st.rev.Store(r.Revision)
			st.settings.Store(set)
			s.stores.put(st)
			after = r.Name
		}
		if !more {
			return nil
		}
	}
}

// save makes new settings durable, and then those in use. The caller holds
// keyStores.mu.
func (st *keyStore) save(set *storeSettings) error {
	value, err := json.Marshal(set)
	if err != nil {
		return err
	}
	defer clear(value)
	t := st.svc.store.NewTxn()
	t.Put(st.name.record(), value, st.rev.Load())
	if err := commit(t); errors.Is(err, keystore.ErrConflict) {
		return errBusy
	} else if err != nil {
		return err
	}
	_, rev, err := st.svc.store.Get(st.name.record())
	if err != nil {
		return err
	}
	st.rev.Store(rev)
	st.settings.Store(set)
	return nil
}
