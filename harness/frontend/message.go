package frontend

import "fmt"

// Message is a front-end message's number (vhost-user.rst, "Front-end message types"). Like Opcode, the table is the harness's
// own: a mistake in the daemon's must not be repeated here.
type Message uint32

// The messages.
const (
	MsgGetFeatures         Message = 1
	MsgSetFeatures         Message = 2
	MsgSetOwner            Message = 3
	MsgResetOwner          Message = 4
	MsgSetMemTable         Message = 5
	MsgSetLogBase          Message = 6
	MsgSetLogFD            Message = 7
	MsgSetVringNum         Message = 8
	MsgSetVringAddr        Message = 9
	MsgSetVringBase        Message = 10
	MsgGetVringBase        Message = 11
	MsgSetVringKick        Message = 12
	MsgSetVringCall        Message = 13
	MsgSetVringErr         Message = 14
	MsgGetProtocolFeatures Message = 15
	MsgSetProtocolFeatures Message = 16
	MsgGetQueueNum         Message = 17
	MsgSetVringEnable      Message = 18
	MsgSendRarp            Message = 19
	MsgNetSetMTU           Message = 20
	MsgSetBackendReqFD     Message = 21
	MsgIotlbMsg            Message = 22
	MsgSetVringEndian      Message = 23
	MsgGetConfig           Message = 24
	MsgSetConfig           Message = 25
	MsgCreateCryptoSession Message = 26
	MsgCloseCryptoSession  Message = 27
	MsgPostcopyAdvise      Message = 28
	MsgPostcopyListen      Message = 29
	MsgPostcopyEnd         Message = 30
	MsgGetInflightFD       Message = 31
	MsgSetInflightFD       Message = 32
	MsgGPUSetSocket        Message = 33
	MsgResetDevice         Message = 34
	MsgVringKick           Message = 35
	MsgGetMaxMemSlots      Message = 36
	MsgAddMemReg           Message = 37
	MsgRemMemReg           Message = 38
	MsgSetStatus           Message = 39
	MsgGetStatus           Message = 40
	MsgGetSharedObject     Message = 41
	MsgSetDeviceStateFD    Message = 42
	MsgCheckDeviceState    Message = 43
)

var messageNames = [...]string{
	MsgGetFeatures:         "GET_FEATURES",
	MsgSetFeatures:         "SET_FEATURES",
	MsgSetOwner:            "SET_OWNER",
	MsgResetOwner:          "RESET_OWNER",
	MsgSetMemTable:         "SET_MEM_TABLE",
	MsgSetLogBase:          "SET_LOG_BASE",
	MsgSetLogFD:            "SET_LOG_FD",
	MsgSetVringNum:         "SET_VRING_NUM",
	MsgSetVringAddr:        "SET_VRING_ADDR",
	MsgSetVringBase:        "SET_VRING_BASE",
	MsgGetVringBase:        "GET_VRING_BASE",
	MsgSetVringKick:        "SET_VRING_KICK",
	MsgSetVringCall:        "SET_VRING_CALL",
	MsgSetVringErr:         "SET_VRING_ERR",
	MsgGetProtocolFeatures: "GET_PROTOCOL_FEATURES",
	MsgSetProtocolFeatures: "SET_PROTOCOL_FEATURES",
	MsgGetQueueNum:         "GET_QUEUE_NUM",
	MsgSetVringEnable:      "SET_VRING_ENABLE",
	MsgSendRarp:            "SEND_RARP",
	MsgNetSetMTU:           "NET_SET_MTU",
	MsgSetBackendReqFD:     "SET_BACKEND_REQ_FD",
	MsgIotlbMsg:            "IOTLB_MSG",
	MsgSetVringEndian:      "SET_VRING_ENDIAN",
	MsgGetConfig:           "GET_CONFIG",
	MsgSetConfig:           "SET_CONFIG",
	MsgCreateCryptoSession: "CREATE_CRYPTO_SESSION",
	MsgCloseCryptoSession:  "CLOSE_CRYPTO_SESSION",
	MsgPostcopyAdvise:      "POSTCOPY_ADVISE",
	MsgPostcopyListen:      "POSTCOPY_LISTEN",
	MsgPostcopyEnd:         "POSTCOPY_END",
	MsgGetInflightFD:       "GET_INFLIGHT_FD",
	MsgSetInflightFD:       "SET_INFLIGHT_FD",
	MsgGPUSetSocket:        "GPU_SET_SOCKET",
	MsgResetDevice:         "RESET_DEVICE",
	MsgVringKick:           "VRING_KICK",
	MsgGetMaxMemSlots:      "GET_MAX_MEM_SLOTS",
	MsgAddMemReg:           "ADD_MEM_REG",
	MsgRemMemReg:           "REM_MEM_REG",
	MsgSetStatus:           "SET_STATUS",
	MsgGetStatus:           "GET_STATUS",
	MsgGetSharedObject:     "GET_SHARED_OBJECT",
	MsgSetDeviceStateFD:    "SET_DEVICE_STATE_FD",
	MsgCheckDeviceState:    "CHECK_DEVICE_STATE",
}

// String is the message's name in the specification, without its prefix.
func (m Message) String() string {
	if int64(m) < int64(len(messageNames)) && messageNames[m] != "" {
		return messageNames[m]
	}
	return fmt.Sprintf("message %d", uint32(m))
}
