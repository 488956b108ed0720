// The hub that articles describe, after gorilla's chat example: a map under an RWMutex, a goroutine pair and a
// buffered channel for each connection, Redis Pub/Sub behind it. Usage: gohub PORT REDIS_PORT
package main

import (
	"context"
	"log"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"github.com/redis/go-redis/v9"
)

const (
	writeWait  = 10 * time.Second
	pongWait   = 60 * time.Second
	pingPeriod = pongWait * 9 / 10
	readLimit  = 512
	queue      = 256
)

type client struct {
	conn *websocket.Conn
	send chan []byte
}

type hub struct {
	mu      sync.RWMutex
	clients map[*client]bool
}

var upgrader = websocket.Upgrader{ReadBufferSize: 1024, WriteBufferSize: 1024}

func (h *hub) broadcast(message []byte) {
	var slow []*client
	h.mu.RLock()
	for c := range h.clients {
		select {
		case c.send <- message:
		default:
			slow = append(slow, c)
		}
	}
	h.mu.RUnlock()
	for _, c := range slow {
		h.remove(c)
	}
}

func (h *hub) remove(c *client) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.clients[c] {
		delete(h.clients, c)
		close(c.send)
	}
}

func (h *hub) serve(w http.ResponseWriter, r *http.Request) {
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	c := &client{conn: conn, send: make(chan []byte, queue)}
	h.mu.Lock()
	h.clients[c] = true
	h.mu.Unlock()
	go c.write()
	go c.read(h)
}

func (c *client) read(h *hub) {
	defer func() {
		h.remove(c)
		_ = c.conn.Close()
	}()
	c.conn.SetReadLimit(readLimit)
	_ = c.conn.SetReadDeadline(time.Now().Add(pongWait))
	c.conn.SetPongHandler(func(string) error { return c.conn.SetReadDeadline(time.Now().Add(pongWait)) })
	for {
		if _, _, err := c.conn.ReadMessage(); err != nil {
			return
		}
	}
}

func (c *client) write() {
	ticker := time.NewTicker(pingPeriod)
	defer func() {
		ticker.Stop()
		_ = c.conn.Close()
	}()
	for {
		select {
		case message, ok := <-c.send:
			_ = c.conn.SetWriteDeadline(time.Now().Add(writeWait))
			if !ok {
				_ = c.conn.WriteMessage(websocket.CloseMessage, nil)
				return
			}
			if err := c.conn.WriteMessage(websocket.TextMessage, message); err != nil {
				return
			}
		case <-ticker.C:
			_ = c.conn.SetWriteDeadline(time.Now().Add(writeWait))
			if err := c.conn.WriteMessage(websocket.PingMessage, nil); err != nil {
				return
			}
		}
	}
}

func main() {
	port, redisPort := os.Args[1], os.Args[2]
	h := &hub{clients: map[*client]bool{}}
	subscription := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + redisPort}).Subscribe(context.Background(), "bench")
	go func() {
		for message := range subscription.Channel(redis.WithChannelSize(10_000)) {
			h.broadcast([]byte(message.Payload))
		}
	}()
	http.HandleFunc("/ws/", h.serve)
	log.Fatal(http.ListenAndServe("127.0.0.1:"+port, nil))
}
