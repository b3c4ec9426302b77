-- Giving back what is held: each item is a step of its own, which leaves everything in order.

-- Gives an item back to its place and offers it; answers its holder, nil where it was not locked.
local function take_back(id, event)
  local item = read_item(id)
  if not item or item.state ~= 'assigned' then
    write('ZREM', locks, id)
    commit()
    return nil
  end
  unlock(item, event)
  place_item(item)
  commit()
  return item.moderator
end

-- 1, or 0 where there is no such desk. It gets nothing more before what it holds is given back.
local function leave_desk(moderator)
  local desk = read_desk(moderator)
  if not desk then
    return 0
  end
  local home = desk.home
  desk.by = ''
  unseat(desk)
  save_desk(desk)
  write('ZREM', asks, moderator)
  commit()
  for _, id in ipairs(redis.call('ZRANGE', prefix .. 'held:' .. moderator, 0, 15)) do
    take_back(id, 'left')
  end
  write('ZREM', beats, moderator)
  write('ZREM', desks, moderator)
  write('DEL', prefix .. 'desk:' .. moderator)
  tell(home, moderator)
  commit()
  return 1
end
