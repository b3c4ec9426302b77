-- Writes are gathered while a step is planned and made together, once every key that they go to has the type they need:
-- a step reads the state before it, and one that meets a foreign key changes nothing. What was read by a command of its
-- type (`seen`) needs no other look. Fields of one row are written by one HSET, a desk that was changed once.
local prefix = string.match(totals, '^(.*)totals$')
local TYPES = {ZADD = 'zset', ZREM = 'zset', HSET = 'hash', HDEL = 'hash', XADD = 'stream'}
local now = whole(now_ms)
local writes, rows, told, desks_read, desks_changed, lines_changed = {}, {}, {}, {}, {}, {}
local types = {}
-- A call leaves some 25 KB of garbage. Each collects about as much; else every twentieth would do it for all, in a millisecond.
local GARBAGE_KB = 30

local function seen(key, kind)
  types[key] = kind
end

local function write(command, key, ...)
  local row = command == 'HSET' and rows[key]
  if row then
    for _, word in ipairs({...}) do
      table.insert(row, word)
    end
    return
  end
  local words = {command, key, ...}
  rows[key] = command == 'HSET' and words or nil -- what is deleted in between stands between
  table.insert(writes, words)
end

-- What a moderator holds, or whether they may, has changed: the process that serves them looks.
local function tell(home, moderator)
  if home ~= '' then
    told[moderator .. '\n' .. home] = {prefix .. 'to:' .. home, 'desk\n' .. moderator}
  end
end

local function forget()
  writes, rows, told, desks_read, desks_changed, lines_changed = {}, {}, {}, {}, {}, {}
end

local function check_type(key, kind)
  if types[key] ~= kind then
    local found = redis.call('TYPE', key).ok
    if found ~= 'none' and found ~= kind then
      error('PROTOCOL ' .. key .. ' holds a ' .. found .. ', not a ' .. kind)
    end
    types[key] = kind
  end
end

-- The first of each line has a key of its own, so that a desk sees the heads of all its lines by one MGET: its place, in
-- 14 digits, so that heads are compared as text, a space and its id.
local function note_heads()
  for class in pairs(lines_changed) do
    local first = redis.call('ZRANGE', prefix .. 'line:' .. class, 0, 0, 'WITHSCORES')
    if first[1] then
      redis.call('SET', prefix .. 'head:' .. class, string.format('%014.0f ', tonumber(first[2])) .. first[1])
    else
      redis.call('DEL', prefix .. 'head:' .. class)
    end
  end
end

-- A message comes last, and one that may not be published keeps nothing from being written.
local function commit()
  for _, desk in pairs(desks_changed) do
    write(
      'HSET', desk.key, 'by', desk.by, 'kind', desk.kind, 'home', desk.home, 'since', desk.since,
      'version', whole(desk.version + 1),
      'walk', desk.partial and '3' or desk.walks and '1' or desk.left and '2' or '0'
    )
  end
  for _, words in ipairs(writes) do
    local kind = TYPES[words[1]]
    if kind then
      check_type(words[2], kind)
    end
  end
  for class in pairs(lines_changed) do
    check_type(prefix .. 'head:' .. class, 'string')
  end
  for _, words in ipairs(writes) do
    redis.call(unpack(words))
  end
  note_heads()
  for _, message in pairs(told) do
    redis.pcall('PUBLISH', message[1], message[2])
  end
  forget()
  collectgarbage('step', GARBAGE_KB)
end
