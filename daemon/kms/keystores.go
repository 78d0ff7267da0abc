package kms

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"keymill/daemon/wire"
	"keymill/daemon/xks"
	"keymill/engine"
	"keymill/hsm/arena"
	"keymill/keystore"
)

// # Custom key stores
//
// A custom key store of type AWS_CLOUDHSM stands for a PKCS#11 token that the
// operator has configured under a cluster id; its password is the token's PIN. One
// of type EXTERNAL_KEY_STORE stands for an XKS proxy somewhere.
//
// What a caller has said of a store is a record of the general-purpose space,
// "cks/<account>/<region>/<id>", and its secret (PIN or secret key) another,
// "cks-secret/<account>/<region>/<id>": it is read when a device is opened or
// compared, and does not stay in memory with the settings. There are a few stores per account, so
// listing reads them all and there are no indexes. Changes of one daemon take turns
// (keyStores.mu), and the first record's revision decides between daemons.
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

	// Of EXTERNAL_KEY_STORE.
	Connectivity string `json:"connectivity,omitempty"`
	Endpoint     string `json:"endpoint,omitempty"`
	Path         string `json:"path,omitempty"`
	Service      string `json:"service,omitempty"`
	ServiceOwner string `json:"serviceOwner,omitempty"`
	AccessKeyID  string `json:"accessKeyId,omitempty"`
}

// A storeName is where a custom key store is kept.
type storeName struct{ account, region, id string }

const (
	storeRecords = "cks/"
	storeSecrets = "cks-secret/"
)

func (n storeName) path() string   { return n.account + "/" + n.region + "/" + n.id }
func (n storeName) record() string { return storeRecords + n.path() }
func (n storeName) secret() string { return storeSecrets + n.path() }

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
	secret, err := x.newStoreSettings(set, in)
	defer arena.Wipe(secret)
	if err != nil {
		return err
	}
	s := x.svc
	s.stores.mu.Lock()
	defer s.stores.mu.Unlock()
	all := s.stores.of(x.account, x.region)
	for _, other := range all {
		if other.state() != storeDisconnected || !other.settings.Load().sameRequest(set) {
			continue
		}
		if same, err := other.hasSecret(secret); err != nil {
			return err
		} else if same {
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
	if set.Connectivity == publicEndpoint { // others are asked when they connect
		proxy, err := x.probe("", set, secret)
		if err != nil {
			return err
		}
		proxy.Close()
	}
	name := storeName{x.account, x.region, newStoreID()}
	st := &keyStore{svc: s, name: name, bucket: s.quota.CustomKeyStore(name.id)}
	if err := st.save(set, secret); err != nil {
		return err
	}
	s.stores.put(st)
	resp := wire.CreateCustomKeyStoreResponse{CustomKeyStoreId: name.id}
	x.out = resp.AppendJSON(x.out)
	return nil
}

// A property is a member of a request that stores of one type have.
type property struct {
	name   string
	of     string // type of store
	given  bool
	needed bool // of a new store
}

// checkProperties refuses the members that a store of a type lacks, and, of a new
// store, those it needs and has not.
func checkProperties(kind string, all []property) error {
	for _, p := range all {
		if p.needed && p.of == kind && !p.given {
			return invalid("You must specify %s for a custom key store of type %s.", p.name, kind)
		}
	}
	for _, p := range all {
		if p.of != kind && p.given {
			return invalid("You cannot specify %s for a custom key store of type %s.", p.name, kind)
		}
	}
	return nil
}

// newStoreSettings takes the settings of a new store from the request, and its
// secret, which the caller wipes.
func (x *exchange) newStoreSettings(set *storeSettings, in *wire.CreateCustomKeyStoreRequest) (secret []byte, err error) {
	err = checkProperties(set.Type, []property{
		{"CloudHsmClusterId", typeCloudHSM, in.CloudHsmClusterId != "", true},
		{"KeyStorePassword", typeCloudHSM, in.KeyStorePassword != "", true},
		{"TrustAnchorCertificate", typeCloudHSM, in.TrustAnchorCertificate != "", true},
		{"XksProxyAuthenticationCredential", typeExternal, in.XksProxyAuthenticationCredential != nil, true},
		{"XksProxyConnectivity", typeExternal, in.XksProxyConnectivity != "", true},
		{"XksProxyUriEndpoint", typeExternal, in.XksProxyUriEndpoint != "", true},
		{"XksProxyUriPath", typeExternal, in.XksProxyUriPath != "", true},
		{"XksProxyVpcEndpointServiceName", typeExternal, in.XksProxyVpcEndpointServiceName != "", false},
		{"XksProxyVpcEndpointServiceOwner", typeExternal, in.XksProxyVpcEndpointServiceOwner != "", false},
	})
	if err != nil {
		return nil, err
	}
	if set.Type == typeCloudHSM {
		set.Cluster = strings.Clone(in.CloudHsmClusterId)
		set.TrustAnchor = strings.Clone(in.TrustAnchorCertificate)
		return []byte(in.KeyStorePassword), x.svc.checkCluster(set, nil)
	}
	set.Connectivity = strings.Clone(in.XksProxyConnectivity)
	set.Endpoint, set.Path = strings.Clone(in.XksProxyUriEndpoint), strings.Clone(in.XksProxyUriPath)
	set.AccessKeyID = strings.Clone(in.XksProxyAuthenticationCredential.AccessKeyId)
	set.Service, set.ServiceOwner = strings.Clone(in.XksProxyVpcEndpointServiceName), strings.Clone(in.XksProxyVpcEndpointServiceOwner)
	return []byte(in.XksProxyAuthenticationCredential.RawSecretAccessKey), x.checkConnectivity(set)
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

// sameRequest tells whether a request for a new store has the settings of one there
// is.
func (set *storeSettings) sameRequest(other *storeSettings) bool {
	a, b := *set, *other
	b.Created, b.State, b.Failure = a.Created, a.State, a.Failure
	return a == b
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

// changeStore finds a store and changes it while nobody else does; the answer is
// an empty object.
func (x *exchange) changeStore(id string, change func(*keyStore) error) error {
	x.svc.stores.mu.Lock()
	defer x.svc.stores.mu.Unlock()
	st, err := x.customKeyStore(id)
	if err != nil {
		return err
	}
	if err := change(st); err != nil {
		return err
	}
	x.out = append(x.out, "{}"...)
	return nil
}

func updateCustomKeyStore(x *exchange, in *wire.UpdateCustomKeyStoreRequest) error {
	return x.changeStore(in.CustomKeyStoreId, func(st *keyStore) error { return x.updateStore(st, in) })
}

func (x *exchange) updateStore(st *keyStore, in *wire.UpdateCustomKeyStoreRequest) error {
	old := st.settings.Load()
	set := *old
	given, err := changeSettings(&set, in)
	defer arena.Wipe(given)
	if err != nil {
		return err
	}
	secret, err := st.secret()
	defer arena.Wipe(secret)
	if err != nil {
		return err
	}
	newSecret := given != nil && !equalSecret(given, secret)
	if newSecret {
		arena.Wipe(secret)
		secret = given
	}
	apart := needsDisconnected(old, &set)
	if apart == "" && newSecret && set.Type == typeCloudHSM {
		apart = "KeyStorePassword"
	}
	if apart == "" && st.state() == storeFailed {
		switch {
		case set.Path != old.Path:
			apart = "XksProxyUriPath"
		case newSecret || set.AccessKeyID != old.AccessKeyID:
			apart = "XksProxyAuthenticationCredential"
		}
	}
	if apart != "" && st.state() != storeDisconnected {
		return storeInvalidState("%s can only be changed while the custom key store is DISCONNECTED; %s is %s.", apart, st.name.id, st.state())
	}
	if set.Type == typeExternal {
		if err := x.checkConnectivity(&set); err != nil {
			return err
		}
	} else if set.Cluster != old.Cluster {
		if err := x.svc.checkCluster(&set, old); err != nil {
			return err
		}
	}
	if err := x.svc.unusedSettings(x.svc.stores.of(x.account, x.region), st, &set); err != nil {
		return err
	}
	var proxy *xks.Client
	connected := st.state() == storeConnected
	if set.Type == typeExternal && (newSecret || set.proxyDiffers(old)) && (connected || set.Connectivity == publicEndpoint) {
		if proxy, err = x.probe(st.name.id, &set, secret); err != nil {
			return err
		}
	}
	if err := st.save(&set, secret); err != nil {
		return err
	}
	switch {
	case proxy == nil:
	case connected: // requests that hold the old client end with it
		st.tries++ // what still opens the device at start has the old settings
		st.device.Store(&device{proxy: proxy})
	default:
		proxy.Close()
	}
	if st.trying.Load() && (newSecret || set.proxyDiffers(old)) {
		st.connect() // the attempt that is under way has the old settings
	}
	return nil
}

// proxyDiffers tells whether what is needed to reach the proxy, besides the secret,
// has changed.
func (set *storeSettings) proxyDiffers(old *storeSettings) bool {
	a := *set
	a.Name, a.State, a.Failure = old.Name, old.State, old.Failure
	return a != *old
}

// needsDisconnected names the first property that differs and may only change in a
// disconnected store, "" for none.
func needsDisconnected(old, set *storeSettings) string {
	switch {
	case set.Cluster != old.Cluster:
		return "CloudHsmClusterId"
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

// changeSettings applies a request to the settings of a store and returns the new
// secret, which the caller wipes; nil when the request has none.
func changeSettings(set *storeSettings, in *wire.UpdateCustomKeyStoreRequest) (secret []byte, err error) {
	credential := in.XksProxyAuthenticationCredential
	err = checkProperties(set.Type, []property{
		{"CloudHsmClusterId", typeCloudHSM, in.CloudHsmClusterId != "", false},
		{"KeyStorePassword", typeCloudHSM, in.KeyStorePassword != "", false},
		{"XksProxyAuthenticationCredential", typeExternal, credential != nil, false},
		{"XksProxyConnectivity", typeExternal, in.XksProxyConnectivity != "", false},
		{"XksProxyUriEndpoint", typeExternal, in.XksProxyUriEndpoint != "", false},
		{"XksProxyUriPath", typeExternal, in.XksProxyUriPath != "", false},
		{"XksProxyVpcEndpointServiceName", typeExternal, in.XksProxyVpcEndpointServiceName != "", false},
		{"XksProxyVpcEndpointServiceOwner", typeExternal, in.XksProxyVpcEndpointServiceOwner != "", false},
	})
	if err != nil {
		return nil, err
	}
	changes := 0
	change := func(to *string, value string) {
		if value != "" {
			*to = strings.Clone(value)
			changes++
		}
	}
	change(&set.Name, in.NewCustomKeyStoreName)
	change(&set.Cluster, in.CloudHsmClusterId)
	if c := in.XksProxyConnectivity; c == publicEndpoint && c != set.Connectivity {
		set.Service, set.ServiceOwner = "", ""
	}
	change(&set.Connectivity, in.XksProxyConnectivity)
	change(&set.Endpoint, in.XksProxyUriEndpoint)
	change(&set.Path, in.XksProxyUriPath)
	change(&set.Service, in.XksProxyVpcEndpointServiceName)
	change(&set.ServiceOwner, in.XksProxyVpcEndpointServiceOwner)
	switch {
	case in.KeyStorePassword != "":
		secret = []byte(in.KeyStorePassword)
	case credential != nil:
		change(&set.AccessKeyID, credential.AccessKeyId)
		secret = []byte(credential.RawSecretAccessKey)
	}
	if changes == 0 && secret == nil {
		return nil, invalid("You must specify at least one property to change.")
	}
	return secret, nil
}

func deleteCustomKeyStore(x *exchange, in *wire.DeleteCustomKeyStoreRequest) error {
	s := x.svc
	return x.changeStore(in.CustomKeyStoreId, func(st *keyStore) error {
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
		t.Delete(st.name.secret(), keystore.AnyRevision)
		if err := commit(t); err != nil {
			return err
		}
		s.stores.remove(st)
		s.stores.proxies.Forget(st.name.id)
		return nil
	})
}

func connectCustomKeyStore(x *exchange, in *wire.ConnectCustomKeyStoreRequest) error {
	return x.changeStore(in.CustomKeyStoreId, func(st *keyStore) error {
		switch st.state() {
		case storeFailed:
			return storeInvalidState("The custom key store %s is FAILED (%s); disconnect it, mend what is wrong, and connect it again.", st.name.id, st.settings.Load().Failure)
		case storeDisconnected:
			st.connect()
		}
		return nil
	})
}

func disconnectCustomKeyStore(x *exchange, in *wire.DisconnectCustomKeyStoreRequest) error {
	return x.changeStore(in.CustomKeyStoreId, func(st *keyStore) error {
		if st.state() == storeDisconnected {
			return storeInvalidState("The custom key store %s is DISCONNECTED already.", st.name.id)
		}
		return st.disconnect()
	})
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

// save makes new settings durable, with the secret unless it is nil, and then those
// in use. The caller holds keyStores.mu.
func (st *keyStore) save(set *storeSettings, secret []byte) error {
	value, err := json.Marshal(set)
	if err != nil {
		return err
	}
	t := st.svc.store.NewTxn()
	t.Put(st.name.record(), value, st.rev.Load())
	if secret != nil {
		t.Put(st.name.secret(), secret, keystore.AnyRevision)
	}
	rev, err := t.Commit(context.Background())
	if errors.Is(err, keystore.ErrConflict) {
		return errBusy
	} else if err != nil {
		return err
	}
	st.rev.Store(rev)
	st.settings.Store(set)
	return nil
}

// secret returns the store's PIN or secret key, which the caller wipes.
func (st *keyStore) secret() ([]byte, error) {
	secret, _, err := st.svc.store.Get(st.name.secret())
	return secret, err
}

// hasSecret tells whether the store's secret is this one.
func (st *keyStore) hasSecret(secret []byte) (bool, error) {
	stored, err := st.secret()
	defer arena.Wipe(stored)
	return err == nil && equalSecret(stored, secret), err
}
