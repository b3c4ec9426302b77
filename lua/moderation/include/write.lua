-- Writes are gathered while a step is planned and made together, once every key that they go to has the type they need:
-- a step reads the state before it, and one that meets a foreign key changes nothing.
local prefix = string.match(totals, '^(.*)totals$')
local TYPES = {ZADD = 'zset', ZREM = 'zset', HSET = 'hash', HDEL = 'hash', XADD = 'stream'}
local now = whole(now_ms)
local writes, told, desks_read = {}, {}, {}

local function write(...)
  table.insert(writes, {...})
end

-- What a moderator holds, or whether they may, has changed: the process that serves them looks.
local function tell(home, moderator)
  if home ~= '' then
    told[moderator .. '\n' .. home] = {prefix .. 'to:' .. home, 'desk\n' .. moderator}
  end
end

local function forget()
  writes, told, desks_read = {}, {}, {}
end

-- A message comes last, and one that may not be published keeps nothing from being written.
local function commit()
  local checked = {}
  for _, words in ipairs(writes) do
    local kind, key = TYPES[words[1]], words[2]
    if kind and not checked[key] then
      local found = redis.call('TYPE', key).ok
      if found ~= 'none' and found ~= kind then
        error('PROTOCOL ' .. key .. ' holds a ' .. found .. ', not a ' .. kind)
      end
      checked[key] = true
    end
  end
  for _, words in ipairs(writes) do
    redis.call(unpack(words))
  end
  for _, message in pairs(told) do
    redis.pcall('PUBLISH', message[1], message[2])
  end
  forget()
end
