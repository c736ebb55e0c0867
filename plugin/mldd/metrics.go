package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

// Bounds of the metrics' server.
const (
	metricsTimeout = 30 * time.Second // of reading a request, and of answering it
	maxScrapes     = 4                // at once

	maxMetricsClients = 32 // connected at once; further ones wait in the backlog
)

const metricsRule = "must be HOST:PORT or the absolute path of a unix socket"

// isMetricsAddress tells whether metrics could be served at an address. An empty one means nowhere.
func isMetricsAddress(address string) bool {
	_, _, err := net.SplitHostPort(address)
	return err == nil || address == "" || filepath.IsAbs(address)
}

// listenMetrics opens the place where metrics are served, a unix socket in the place of a former one.
func listenMetrics(address string) (l net.Listener, err error) {
	switch {
	case address == "":
		return nil, nil
	case filepath.IsAbs(address):
		if info, err := os.Lstat(address); err == nil && info.Mode().Type() == fs.ModeSocket {
			_ = os.Remove(address) // if it cannot be, listening fails and says so
		}
		l, err = net.Listen("unix", address)
	default:
		l, err = net.Listen("tcp", address)
	}
	if err != nil {
		return nil, fmt.Errorf("--metrics %s: %s, and free: %w", address, metricsRule, err)
	}
	return l, nil
}

// serveMetrics serves /metrics until ctx is done, and closes l.
func serveMetrics(ctx context.Context, l net.Listener, c prometheus.Collector, log *slog.Logger) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(c, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: maxScrapes, Timeout: metricsTimeout,
	}))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "mldd: see /metrics") })
	s := &http.Server{
		Handler: mux, ReadTimeout: metricsTimeout, WriteTimeout: metricsTimeout + time.Second, MaxHeaderBytes: 1 << 14,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	if err := s.Serve(netutil.LimitListener(l, maxMetricsClients)); !errors.Is(err, http.ErrServerClosed) {
		log.Warn("metrics not served any more", "err", err)
	}
}
