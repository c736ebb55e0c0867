package api_test

import (
	"encoding/json"
	"fmt"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

func ExampleParseSettings() {
	configuration := `{"groups": ["ff05::4321", "fd00:1::10@ff3e::8000:1", {"group": "ff02::8", "deliver": false}], "robustness": 3}`
	var keys map[string]json.RawMessage
	if err := json.Unmarshal([]byte(configuration), &keys); err != nil {
		fmt.Println(err)
	}
	settings, err := api.ParseSettings(keys)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(settings.Groups)
	fmt.Println(settings.MLDVersion, settings.Robustness, settings.Ready)

	keys["robustness"] = json.RawMessage("9")
	_, err = api.ParseSettings(keys)
	fmt.Println(err.Code, err)
	// Output:
	// [ff02::8 (deliver false) ff05::4321 ff3e::8000:1 (include [fd00:1::10])]
	// auto 3 {auto 1s}
	// 7 robustness: 9: must be from 1 to 7
}
