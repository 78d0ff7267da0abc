package kms

import (
	"bytes"
	"cmp"
	"context"
	"crypto/subtle"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"keymill/daemon/quota"
	"keymill/daemon/wire"
	"keymill/daemon/xks"
	"keymill/engine"
	"keymill/hsm"
	"keymill/hsm/arena"
	"keymill/keystore"
)

// # Custom key stores at run time
//
// A keyStore lives as long as its record. Requests reach it through their key's
// view and read two things of it, without a lock: the connection state and the
// device, both behind atomic pointers. They are written under keyStores.mu only,
// by the operations on key stores and by the goroutine that connects.
//
// The order of writes makes a disconnected store quiet: the state goes first, then
// the views of its keys are dropped (a view shows Unavailable), then the device is
// taken away and closed. A request that got hold of the device before that ends
// with its answer or with the device's error; one that comes later finds none.
//
// Each connection attempt has a number (tries). What an attempt brings counts only
// while its number is the store's newest, so one that was overtaken by a disconnect
// closes what it opened and changes nothing.
//
// A store that was connected when the daemon stopped is CONNECTED from the start and
// opens its device behind the requests' backs, again and again until it succeeds:
// a token that is away must not keep the daemon from starting.

// keyStores holds the custom key stores of all accounts and regions.
type keyStores struct {
	mu      sync.Mutex // held by whoever changes a store
	table   sync.Map   // storeName -> *keyStore
	config  KeyStoreConfig
	proxies *xks.Transport
	stop    context.Context
	cancel  context.CancelFunc
	work    sync.WaitGroup // connection attempts
}

// KeyStoreConfig is what the operator says of the devices behind custom key stores.
type KeyStoreConfig struct {
	// Clusters are the PKCS#11 tokens that can be custom key stores of type
	// AWS_CLOUDHSM, by the CloudHsmClusterId that callers name them with.
	Clusters map[string]Cluster
	// Proxies says how XKS proxies are reached.
	Proxies xks.TransportConfig
}

// A Cluster is a PKCS#11 token that custom key stores can be made on.
type Cluster struct {
	// Token says where it is. The PIN is the custom key store's password.
	Token hsm.PKCS11Config
	// TrustAnchor is the certificate that callers must show, in PEM; empty accepts any.
	TrustAnchor string
	// OtherKeys allows asymmetric and HMAC keys where the token can make them, which
	// AWS KMS does not.
	OtherKeys bool
}

type keyStore struct {
	svc      *Service
	name     storeName
	rev      atomic.Uint64 // of the record; written under keyStores.mu
	tries    uint64        // connection attempts begun; under keyStores.mu
	trying   atomic.Bool
	settings atomic.Pointer[storeSettings]
	device   atomic.Pointer[device] // nil while there is none
	bucket   *quota.Bucket          // of the store's cryptographic requests

	throttled atomic.Uint64 // requests that found the bucket empty
}

// admit takes n units from the store's quota.
func (st *keyStore) admit(n int64, now time.Time) bool {
	if st.bucket.Take(n, now) {
		return true
	}
	st.throttled.Add(1)
	return false
}

// A device is the far end of a key store: one of the two.
type device struct {
	token hsm.TokenKeys
	proxy *xks.Client
}

func (d *device) close(log *slog.Logger) {
	switch {
	case d == nil:
	case d.proxy != nil:
		d.proxy.Close()
	default:
		if err := d.token.Close(); err != nil {
			log.Warn("token of a custom key store did not close well", "error", err)
		}
	}
}

func (k *keyStores) get(n storeName) *keyStore {
	if st, ok := k.table.Load(n); ok {
		return st.(*keyStore)
	}
	return nil
}

func (k *keyStores) put(st *keyStore)    { k.table.Store(st.name, st) }
func (k *keyStores) remove(st *keyStore) { k.table.Delete(st.name) }

// of returns the stores of an account and region, by id.
func (k *keyStores) of(account, region string) []*keyStore {
	var all []*keyStore
	k.table.Range(func(n, st any) bool {
		if n := n.(storeName); n.account == account && n.region == region {
			all = append(all, st.(*keyStore))
		}
		return true
	})
	slices.SortFunc(all, func(a, b *keyStore) int { return cmp.Compare(a.name.id, b.name.id) })
	return all
}

// state returns the connection state.
func (st *keyStore) state() string {
	if st.trying.Load() {
		return storeConnecting
	}
	return st.settings.Load().State
}

// connected tells whether keys of the store can be used. That is so a moment before
// its state says it.
func (st *keyStore) connected() bool { return st.settings.Load().State == storeConnected }

func equalSecret(a, b []byte) bool { return subtle.ConstantTimeCompare(a, b) == 1 }

// connect begins an attempt. The caller holds keyStores.mu.
func (st *keyStore) connect() {
	st.tries++
	st.trying.Store(true)
	try, set := st.tries, st.settings.Load()
	k := &st.svc.stores
	k.work.Go(func() {
		var d *device
		err := st.svc.checkCluster(set, set)
		if err == nil {
			d, err = st.open(set)
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		if try != st.tries { // disconnected meanwhile
			d.close(st.svc.log)
			return
		}
		next := *st.settings.Load()
		next.State, next.Failure = storeConnected, ""
		if err != nil {
			next.State, next.Failure = storeFailed, connectionCode(err)
			st.svc.log.Warn("custom key store did not connect", "custom_key_store", st.name.id, "answered", next.Failure, "error", err)
		}
		if err := st.save(&next, nil); err != nil {
			st.svc.log.Error("the state of a custom key store could not be kept", "custom_key_store", st.name.id, "error", err)
			d.close(st.svc.log)
		} else if d != nil {
			st.device.Store(d)
		}
		st.dropViews()
		st.trying.Store(false) // whoever sees it connected finds its keys usable
	})
}

// resume opens the device of a store that was connected when the daemon stopped.
func (st *keyStore) resume() {
	k := &st.svc.stores
	try := st.tries
	k.work.Go(func() {
		for pause := resumeFirst; ; pause = min(2*pause, resumeMost) {
			d, err := st.open(st.settings.Load())
			if err == nil {
				k.mu.Lock()
				defer k.mu.Unlock()
				if try != st.tries || k.stop.Err() != nil {
					d.close(st.svc.log)
				} else {
					st.device.Store(d)
				}
				return
			}
			// A refused PIN is not tried again: tokens lock themselves.
			if errors.Is(err, hsm.ErrPINIncorrect) || errors.Is(err, hsm.ErrTokenLocked) {
				st.svc.log.Error("the token of a connected custom key store refuses its password: disconnect the store, mend the password, connect it again", "custom_key_store", st.name.id, "error", err)
				return
			}
			st.svc.log.Warn("the device of a connected custom key store is away", "custom_key_store", st.name.id, "next_try_in", pause, "error", err)
			select {
			case <-k.stop.Done():
				return
			case <-time.After(pause):
			}
			k.mu.Lock()
			overtaken := try != st.tries
			k.mu.Unlock()
			if overtaken {
				return
			}
		}
	})
}

const (
	resumeFirst = time.Second
	resumeMost  = 10 * time.Second
)

// disconnect takes the store out of use. The caller holds keyStores.mu.
func (st *keyStore) disconnect() error {
	next := *st.settings.Load()
	next.State, next.Failure = storeDisconnected, ""
	if err := st.save(&next, nil); err != nil {
		return err
	}
	st.tries++
	st.trying.Store(false)
	st.dropViews()
	if d := st.device.Swap(nil); d != nil {
		// Requests that hold the device end first: closing waits for them.
		st.svc.stores.work.Go(func() { d.close(st.svc.log) })
	}
	return nil
}

// dropViews makes the next requests see the state of the store as it is now.
func (st *keyStore) dropViews() {
	var after *keystore.Ref
	for {
		refs, more, err := st.svc.store.ListStoreKeys(st.name.id, after, 1000)
		if err != nil {
			st.svc.log.Error("keys of a custom key store cannot be listed", "custom_key_store", st.name.id, "error", err)
			return
		}
		for _, ref := range refs {
			st.svc.dropView(ref)
		}
		if !more {
			return
		}
		after = &refs[len(refs)-1]
	}
}

// connectTimeout bounds a look at a proxy; a token bounds its own opening.
const connectTimeout = 10 * time.Second

// open opens the device that settings name.
func (st *keyStore) open(set *storeSettings) (*device, error) {
	s := st.svc
	secret, err := st.secret()
	defer arena.Wipe(secret)
	if err != nil {
		return nil, err
	}
	if set.Type == typeExternal {
		proxy, err := s.openProxy(st.name, set, secret, "ConnectCustomKeyStore", st.name.id)
		if err != nil {
			return nil, err
		}
		return &device{proxy: proxy}, nil
	}
	c, ok := s.stores.config.Clusters[set.Cluster]
	if !ok {
		return nil, fmt.Errorf("%w: the cluster %s is not configured any more", hsm.ErrTokenMissing, set.Cluster)
	}
	token, err := hsm.OpenToken(c.Token, secret)
	if err != nil {
		return nil, err
	}
	return &device{token: token}, nil
}

// openProxy returns a client for the proxy of settings once the proxy has said that
// it is well.
func (s *Service) openProxy(name storeName, set *storeSettings, secret []byte, operation, requestID string) (*xks.Client, error) {
	proxy, err := s.stores.proxies.NewClient(xks.ClientConfig{
		Store: name.id, Region: name.region, Endpoint: set.Endpoint, Path: set.Path, AccessKeyID: set.AccessKeyID, Secret: secret,
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	health, err := proxy.Health(ctx, operation, requestID)
	if err == nil {
		err = health.Err()
	}
	if err != nil {
		proxy.Close()
		return nil, err
	}
	return proxy, nil
}

// probe asks the proxy of new settings whether it is well. The store has no id while
// it is being created.
func (x *exchange) probe(id string, set *storeSettings, secret []byte) (*xks.Client, error) {
	proxy, err := x.svc.openProxy(storeName{x.account, x.region, id}, set, secret, x.opName(), string(x.id[:]))
	if e := xks.StoreError(err); e != nil {
		return nil, e
	}
	return proxy, err
}

// connectionCode is the ConnectionErrorCode for a device that did not open.
func connectionCode(err error) string {
	var e *wire.Error
	switch {
	case xks.ReasonOf(err) != 0:
		return xks.ConnectionCode(err)
	case errors.As(err, &e) && e.Has(wire.CloudHsmClusterNotFoundException):
		return "CLUSTER_NOT_FOUND"
	case errors.Is(err, hsm.ErrPINIncorrect), errors.Is(err, hsm.ErrPINFile):
		return "INVALID_CREDENTIALS"
	case errors.Is(err, hsm.ErrTokenLocked):
		return "USER_LOCKED_OUT"
	case errors.Is(err, hsm.ErrTokenMissing):
		return "CLUSTER_NOT_FOUND"
	case errors.Is(err, hsm.ErrTimeout), errors.Is(err, hsm.ErrSession), errors.Is(err, hsm.ErrDevice):
		return "NETWORK_ERRORS"
	}
	return "INTERNAL_ERROR"
}

// checkCluster refuses a cluster that is not configured here, and another trust
// anchor than its own. old is what the store had before, nil for a new one. An
// external key store has none.
func (s *Service) checkCluster(set, old *storeSettings) error {
	if set.Type != typeCloudHSM {
		return nil
	}
	c, ok := s.stores.config.Clusters[set.Cluster]
	if !ok {
		return wire.NewError(wire.CloudHsmClusterNotFoundException, "The cluster %s is not configured: the file of the option key-stores names the clusters and their tokens.", set.Cluster)
	}
	if c.TrustAnchor == "" || sameCertificate(c.TrustAnchor, set.TrustAnchor) {
		return nil
	}
	if old != nil {
		return wire.NewError(wire.CloudHsmClusterNotRelatedException, "The cluster %s has another trust anchor certificate than the custom key store.", set.Cluster)
	}
	return wire.NewError(wire.IncorrectTrustAnchorException, "The trust anchor certificate in the request is not that of the cluster %s.", set.Cluster)
}

// sameCertificate compares the first certificate of two PEM texts.
func sameCertificate(a, b string) bool {
	x, _ := pem.Decode([]byte(a))
	y, _ := pem.Decode([]byte(b))
	return x != nil && y != nil && bytes.Equal(x.Bytes, y.Bytes)
}

// closeStores ends all attempts and closes all devices.
func (s *Service) closeStores() {
	k := &s.stores
	k.cancel()
	k.mu.Lock()
	k.table.Range(func(_, v any) bool {
		st := v.(*keyStore)
		st.tries++
		if d := st.device.Swap(nil); d != nil {
			k.work.Go(func() { d.close(s.log) })
		}
		return true
	})
	k.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		k.work.Wait()
	}()
	select {
	case <-ended:
	case <-time.After(closePatience): // what an attempt brings does not count any more
		s.log.Warn("a device of a custom key store is still being opened or closed; not waiting for it")
	}
	k.proxies.Close()
}

// closePatience bounds the wait for devices at the end: a token may take a minute to
// open, and the daemon stops within ten seconds.
const closePatience = 3 * time.Second

// healthInterval is how often the proxies of connected stores are asked how they
// are, for the metrics; AWS KMS does it every few minutes.
const healthInterval = 5 * time.Minute

func (k *keyStores) watchProxies() {
	t := time.NewTicker(healthInterval)
	defer t.Stop()
	for {
		select {
		case <-k.stop.Done():
			return
		case <-t.C:
			k.checkProxies()
		}
	}
}

// checkProxies asks each proxy once. What is wrong with one is in the metrics and
// the log; it changes nothing.
func (k *keyStores) checkProxies() {
	k.table.Range(func(_, v any) bool {
		if d := v.(*keyStore).device.Load(); d != nil && d.proxy != nil {
			var random [16]byte
			var id [36]byte
			engine.Random(random[:])
			putUUID(&id, &random)
			_, _ = d.proxy.Health(k.stop, "KmsHealthCheck", string(id[:]))
		}
		return k.stop.Err() == nil
	})
}

// writeMetrics writes the metrics of key stores in Prometheus text form.
func (k *keyStores) writeMetrics(w io.Writer) {
	k.table.Range(func(_, v any) bool {
		st := v.(*keyStore)
		fmt.Fprintf(w, "keymill_custom_key_store_throttled_total{custom_key_store=%q} %d\n", st.name.id, st.throttled.Load())
		return true
	})
	k.proxies.WriteMetrics(w)
}

// openStores reads the custom key stores and begins to open the devices of those
// that are connected.
func (s *Service) openStores(c KeyStoreConfig) (err error) {
	k := &s.stores
	k.config = c
	k.config.Proxies.Logger, k.config.Proxies.Clock = s.log, s.clock
	if k.proxies, err = xks.NewTransport(k.config.Proxies); err != nil {
		return fmt.Errorf("key-stores: xks: %w", err)
	}
	s.destroyExternal = s.destroyInToken
	k.stop, k.cancel = context.WithCancel(context.Background())
	if err := s.loadStores(); err != nil {
		return err
	}
	k.table.Range(func(_, v any) bool {
		if st := v.(*keyStore); st.connected() {
			st.resume()
		}
		return true
	})
	k.work.Go(k.watchProxies)
	return nil
}
