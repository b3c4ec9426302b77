-- now_ms: the server's UTC milliseconds, or the time that a test passes in.
local now_ms = tonumber(clock_ms)
if now_ms == 0 then
  local time = redis.call('TIME')
  now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
end
