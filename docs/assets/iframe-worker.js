// Browsers start no worker from a file. Where the site is opened from one, the worker of its search runs in a hidden
// frame, which may load the same script; messages are passed between the two.
if (location.protocol === "file:") {
  window.Worker = class FrameWorker extends EventTarget {
    constructor(address) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const inside = this.frame.contentWindow
      window.addEventListener("message", (event) => {
        if (event.source !== inside) return
        const message = new MessageEvent("message", { data: event.data })
        this.dispatchEvent(message)
        if (this.onmessage) this.onmessage(message)
      })
      this.ready = new Promise((resolve) => this.frame.addEventListener("load", resolve, { once: true }))
      inside.document.open()
      inside.document.write(`<!doctype html><script>
        postMessage = (data) => parent.postMessage(data, "*")
        importScripts = (...addresses) => addresses.reduce((before, address) => before.then(() => new Promise((done) => {
          const script = document.createElement("script")
          script.src = address
          script.onload = done
          document.head.append(script)
        })), Promise.resolve())
      <\/script><script src="${new URL(address, location.href)}"><\/script>`)
      inside.document.close()
    }

    postMessage(data) {
      const inside = this.frame.contentWindow
      this.ready.then(() => inside.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
