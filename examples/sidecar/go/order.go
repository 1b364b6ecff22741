// One order over two databases, by SQL that the sidecar runs: go run go/order.go dev.json
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"
)

type object = map[string]any

var dev struct{ Sidecar, Token string }
var client = http.Client{Timeout: 30 * time.Second}

// ask posts to the sidecar. A service that joins another one's transaction also sends on
// the header Undoubt-Transaction of the request that it is working on.
func ask(path string, body object) (told object, err error) {
	sent, _ := json.Marshal(body)
	request, err := http.NewRequest("POST", dev.Sidecar+path, bytes.NewReader(sent))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+dev.Token)
	request.Header.Set("Content-Type", "application/json")
	answer, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if err = json.NewDecoder(answer.Body).Decode(&told); err == nil && answer.StatusCode >= 300 {
		err = fmt.Errorf("%v: %v", told["name"], told["detail"])
	}
	return told, err
}

func order(item string, price int) (object, error) {
	begun, err := ask("/v1/transactions", object{"timeout_ms": 30000})
	if err != nil {
		return nil, err
	}
	tx := fmt.Sprintf("/v1/transactions/%v", begun["id"])
	for _, statement := range []object{
		{"participant": "orders", "sql": "insert into orders (item) values ($1)", "params": []any{item}},
		{"participant": "payments", "sql": "update accounts set balance = balance - $1 where name = 'ada'", "params": []any{price}},
	} {
		if _, err := ask(tx+"/statements", statement); err != nil {
			_, _ = ask(tx+"/rollback", object{})
			return nil, err
		}
	}
	return ask(tx+"/commit", object{}) // its outcome may be "unknown" yet: GET the transaction tells it later
}

func main() {
	file, err := os.ReadFile(os.Args[1])
	if err == nil {
		err = json.Unmarshal(file, &dev)
	}
	if err != nil {
		log.Fatal(err)
	}
	told, err := order("a lamp", 15)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(told["outcome"])
}
