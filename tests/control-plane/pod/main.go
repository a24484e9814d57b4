// What runs in the pods of the real node (tests/node.rs), by its first argument:
//
//	pause   keeps a pod's namespaces, as every pod sandbox needs.
//	serve   a TLS server on port 8443 that reads /tls once, when it starts, and again at POST /reload on port 9000.
//
// Flags of serve: -only P-256 ends where the key is of another curve; -deaf answers a reload and keeps what it has.
// Port 9000 also takes POST /unready and POST /ready, which GET /ready then says: for readiness probes.
package main

import (
	"crypto/ecdsa"
	"crypto/tls"
	"flag"
	"log"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
)

func main() {
	if len(os.Args) < 2 {
		log.Fatal("pause or serve?")
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	switch os.Args[1] {
	case "pause":
	case "serve":
		go serve(os.Args[2:])
	default:
		log.Fatalf("%q is neither pause nor serve", os.Args[1])
	}
	<-end
}

func serve(arguments []string) {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	only := flags.String("only", "", "the one curve that it takes keys of")
	deaf := flags.Bool("deaf", false, "answers a reload and keeps what it has")
	flags.Parse(arguments)

	var served atomic.Pointer[tls.Certificate]
	load := func() error {
		pair, err := tls.LoadX509KeyPair("/tls/tls.crt", "/tls/tls.key")
		if err != nil {
			return err
		}
		key, elliptic := pair.PrivateKey.(*ecdsa.PrivateKey)
		if *only != "" && (!elliptic || key.Curve.Params().Name != *only) {
			log.Fatalf("the key is not of curve %s", *only)
		}
		served.Store(&pair)
		return nil
	}
	if err := load(); err != nil {
		log.Fatal(err)
	}
	var unready atomic.Bool
	control := http.NewServeMux()
	control.HandleFunc("POST /reload", func(w http.ResponseWriter, r *http.Request) {
		if *deaf {
			return
		}
		if err := load(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	control.HandleFunc("POST /ready", func(http.ResponseWriter, *http.Request) { unready.Store(false) })
	control.HandleFunc("POST /unready", func(http.ResponseWriter, *http.Request) { unready.Store(true) })
	control.HandleFunc("GET /ready", func(w http.ResponseWriter, r *http.Request) {
		if unready.Load() {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
		}
	})
	go func() { log.Fatal(http.ListenAndServe(":9000", control)) }()
	choose := func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return served.Load(), nil }
	server := http.Server{
		Addr:      ":8443",
		TLSConfig: &tls.Config{GetCertificate: choose},
		Handler:   http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
		ErrorLog:  log.New(os.Stderr, "", 0),
	}
	log.Fatal(server.ListenAndServeTLS("", ""))
}
