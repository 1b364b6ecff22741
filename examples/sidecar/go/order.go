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

// post is the client. To join another service's transaction, send on its header Undoubt-Transaction.
func post(path string, body object) (told object, err error) {
	sent, _ := json.Marshal(body)
	request, err := http.NewRequest("POST", dev.Sidecar+path, bytes.NewReader(sent))
	if err != nil {
		return nil, err
	}
	request.Header = http.Header{"Authorization": {"Bearer " + dev.Token}, "Content-Type": {"application/json"}}
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

// order returns the outcome. "unknown" is not "aborted": GET of the transaction tells it later.
func order(item string, price int) (any, error) {
	begun, err := post("/v1/transactions", object{"timeout_ms": 30000})
	if err != nil {
		return "aborted", err
	}
	tx := fmt.Sprintf("/v1/transactions/%v", begun["id"])
	run := func(participant, sql string, values ...any) {
		if err == nil {
			_, err = post(tx+"/statements", object{"participant": participant, "sql": sql, "params": values})
		}
	}
	run("orders", "insert into orders (item) values ($1)", item)
	run("payments", "update accounts set balance = balance - $1 where name = 'ada'", price)
	if err != nil {
		_, _ = post(tx+"/rollback", object{})
		return "aborted", err
	}
	told, err := post(tx+"/commit", object{})
	if outcome, known := told["outcome"]; known {
		return outcome, err
	}
	return "unknown", err
}

func main() {
	file, err := os.ReadFile(os.Args[1])
	if err == nil {
		err = json.Unmarshal(file, &dev)
	}
	if err != nil {
		log.Fatal(err)
	}
	outcome, err := order("a lamp", 15)
	fmt.Println(outcome)
	if err != nil {
		log.Fatal(err)
	}
}
