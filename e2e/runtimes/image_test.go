package runtimes

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
)

const (
	imageName    = "localhost/receiver:1"
	imageArchive = "/run/receiver.tar"
)

// writeImage writes an image with one program, /receiver, in the form that docker saves and both podman and containerd
// load. It comes from no registry.
func writeImage(archive, program string) error {
	text, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	layer, layerErr := tarOf(0o755, file{"receiver", text})
	config, configErr := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{"Entrypoint": []string{"/receiver"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	manifest, manifestErr := json.Marshal([]map[string]any{
		{"Config": "config.json", "RepoTags": []string{imageName}, "Layers": []string{"layer.tar"}},
	})
	all, allErr := tarOf(0o644, file{"manifest.json", manifest}, file{"config.json", config}, file{"layer.tar", layer})
	return errors.Join(layerErr, configErr, manifestErr, allErr, os.WriteFile(archive, all, 0o600))
}

type file struct {
	name string
	text []byte
}

func tarOf(mode int64, files ...file) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: mode, Size: int64(len(f.text))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.text); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return out.Bytes(), err
}
