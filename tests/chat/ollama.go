// Renders Go templates as Ollama does: one JSON object a line in, one out.
package main

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct {
	Role    string
	Content string
}

type job struct {
	Template string
	Messages []*message
}

type answer struct {
	Text  string
	Error string
}

func render(item job) (string, error) {
	parsed, err := template.New("").Option("missingkey=zero").Parse(item.Template)
	if err != nil {
		return "", err
	}
	var system []string
	for _, found := range item.Messages {
		if found.Role == "system" {
			system = append(system, found.Content)
		}
	}
	var text strings.Builder
	err = parsed.Execute(&text, map[string]any{
		"System":   strings.Join(system, "\n\n"),
		"Messages": item.Messages,
		"Response": "",
	})
	return text.String(), err
}

func main() {
	lines := bufio.NewReader(os.Stdin)
	decoder, encoder := json.NewDecoder(lines), json.NewEncoder(os.Stdout)
	for decoder.More() {
		var item job
		if err := decoder.Decode(&item); err != nil {
			panic(err)
		}
		text, err := render(item)
		found := answer{Text: text}
		if err != nil {
			found.Error = err.Error()
		}
		if err := encoder.Encode(found); err != nil {
			panic(err)
		}
	}
}
