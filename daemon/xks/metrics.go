package xks

import (
	"io"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// # Metrics of the KMS side
//
// By key store, as operators of AWS KMS know them:
//
//	keymill_xks_proxy_requests_total{call, outcome}     AWS: XksProxyErrors
//	keymill_xks_proxy_request_seconds{call, quantile}   XksProxyLatency, of five minutes
//	keymill_xks_proxy_key_managers{state}               XksExternalKeyManagerStates
//	keymill_xks_proxy_certificate_not_after             XksProxyCertificateDaysToExpire, in Unix time
//
// The last two are as of the proxy's last answer.

// storeMetrics are those of one key store. All clients of the store share them, and
// they are gone with it.
type storeMetrics struct {
	set      *metrics.Set
	label    string
	notAfter atomic.Int64
	managers [3]atomic.Int64
}

var managerStates = [3]string{HealthActive, HealthDegraded, HealthUnavailable}

// metricsOf returns the metrics of the key store of that name; nil for no name.
func (t *Transport) metricsOf(store string) *storeMetrics {
	if store == "" {
		return nil
	}
	if m, ok := t.stores.Load(store); ok {
		return m.(*storeMetrics)
	}
	m, _ := t.stores.LoadOrStore(store, &storeMetrics{set: metrics.NewSet(), label: `{custom_key_store="` + store + `"`})
	return m.(*storeMetrics)
}

// Forget drops the metrics of a key store that is deleted.
func (t *Transport) Forget(store string) {
	if m, ok := t.stores.LoadAndDelete(store); ok {
		m.(*storeMetrics).set.UnregisterAllMetrics()
	}
}

// WriteMetrics writes the metrics of all key stores in Prometheus text.
func (t *Transport) WriteMetrics(w io.Writer) {
	t.stores.Range(func(_, m any) bool {
		m.(*storeMetrics).set.WritePrometheus(w)
		return true
	})
}

func (m *storeMetrics) called(a Action, took time.Duration, err error) {
	if m == nil {
		return
	}
	outcome := "ok"
	if err != nil {
		outcome = ReasonOf(err).String()
	}
	label := m.label + `,call="` + a.String() + `"`
	m.set.GetOrCreateCounter("keymill_xks_proxy_requests_total" + label + `,outcome="` + outcome + `"}`).Inc()
	m.set.GetOrCreateSummary("keymill_xks_proxy_request_seconds" + label + "}").Update(took.Seconds())
}

func (m *storeMetrics) certificate(notAfter time.Time) {
	if m == nil || m.notAfter.Swap(notAfter.Unix()) != 0 {
		return
	}
	m.set.GetOrCreateGauge("keymill_xks_proxy_certificate_not_after"+m.label+"}", func() float64 { return float64(m.notAfter.Load()) })
}

func (m *storeMetrics) fleet(h *HealthStatus) {
	if m == nil {
		return
	}
	for i, state := range managerStates {
		n := int64(0)
		for _, manager := range h.Fleet {
			if manager.Health == state {
				n++
			}
		}
		count := &m.managers[i]
		count.Store(n)
		m.set.GetOrCreateGauge("keymill_xks_proxy_key_managers"+m.label+`,state="`+state+`"}`, func() float64 { return float64(count.Load()) })
	}
}
